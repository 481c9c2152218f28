"""Models and schedulers of diffusers as chains."""

from chainograd.adapters.diffusers.build import diffusers_chain
from chainograd.adapters.diffusers.chain import DiffusersChain

__all__ = ["DiffusersChain", "diffusers_chain"]
