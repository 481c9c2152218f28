"""Models and samplers of other libraries as chains, without importing those libraries."""

from chainograd.adapters.diffusers import DiffusersChain, diffusers_chain

__all__ = ["DiffusersChain", "diffusers_chain"]
