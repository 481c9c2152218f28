"""Saved tensors of single graph nodes: discarded, or recomputed in the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chainograd.torch_internals.saved_tensors import hook_saved

# Note [Saved tensors]
# 1. The functions, their derivatives and the order of all sums are torch's own. Only the tensors
#    that a graph node saves are replaced. So gradients are equal to the bit, second ones included.
# 2. If a backward function does not read the values of a saved tensor, another tensor of the same
#    shape replaces it: one that is kept anyway, or NaN, so that a kernel that does read it shows.
# 3. A saved tensor can have one pair of hooks, and hooks of the user, such as those of
#    `torch.utils.checkpoint`, may be called only once. While such hooks are in force, nothing is
#    replaced.
# 4. The object through which torch takes hooks lives as long as its node, so the node is held
#    until the hooks are registered.


def discard_saved(
    node: Any, name: str, alike: Tensor | None = None, *, dense: bool = False
) -> None:
    """Let a node discard a saved tensor whose values its backward function does not read.

    Args:
        node: A node of the graph.
        name: The node's name for the tensor.
        alike: A tensor that is kept anyway; it replaces the saved one if it has the same form.
        dense: Whether the replacement must have its own memory for every element, which it then
            takes during the node's backward function.
    """
    _hook(node, name, partial(_Form, alike, dense))


def recompute_saved(node: Any, name: str, make: Callable[[], Tensor]) -> None:
    """Let a node discard a saved tensor, and call ``make`` to recompute it."""
    _hook(node, name, lambda _: make)


def _hook(node: Any, name: str, pack: Callable[[Tensor], Callable[[], Tensor]]) -> None:
    try:
        hook_saved(node, name, pack, _call)
    except RuntimeError as error:
        # By another chain, inside whose step this chain runs; note [Saved tensors], 3.
        if "have already been set" not in str(error):
            raise


def _call(make: Callable[[], Tensor]) -> Tensor:
    return make()  # torch puts the result at the saved tensor's place in the graph


def _contiguous(size: torch.Size) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor of that size."""
    strides, step = [], 1
    for length in reversed(size):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


class _Form:
    """The size, strides, dtype and device of a tensor; called, it returns a tensor like that."""

    __slots__ = ("alike", "dense", "device", "dtype", "one", "plain", "size", "stride")

    def __init__(self, alike: Tensor | None, dense: bool, tensor: Tensor) -> None:
        self.alike, self.dense = alike, dense
        self.size, self.stride = tensor.size(), tensor.stride()
        self.dtype, self.device = tensor.dtype, tensor.device
        # Torch chooses kernels by the memory format, and with one channel two formats fit.
        self.plain = self.stride == _contiguous(self.size)
        # A subclass must make a tensor of its own class.
        self.one = None if type(tensor) is Tensor else tensor.new_full((), math.nan)

    def __call__(self) -> Tensor:
        kept, one = self.alike, self.one
        if kept is not None and (
            (kept.size(), kept.stride(), kept.dtype) == (self.size, self.stride, self.dtype)
        ):
            return kept
        if one is None:
            one = torch.full((), math.nan, dtype=self.dtype, device=self.device)
        if self.dense or not self.plain:
            return one.new_empty_strided(self.size, self.stride).fill_(math.nan)
        return one.expand(self.size)
