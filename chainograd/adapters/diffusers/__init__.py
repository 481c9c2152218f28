"""Pipelines and schedulers of diffusers as chains."""

from chainograd.adapters.diffusers.chain import DiffusersChain, diffusers_chain

__all__ = ["DiffusersChain", "diffusers_chain"]
