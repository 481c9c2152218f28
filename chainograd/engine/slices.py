"""Slices of a batch: how states and cotangents are cut, and states joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chainograd.errors import ChainError
from chainograd.state import Cotangents, State, differentiable


@dataclass(frozen=True, slots=True)
class Slice:
    """Some samples of a batch, one after the other.

    Attributes:
        start: The first of them.
        size: How many, if the batch does not end before.
        batch: N, the batch size.
    """

    start: int
    size: int
    batch: int

    def of(self, state: State) -> State:
        """Return the slice of a state; what has no batch dimension stays whole."""
        return state._replace(leaves=tuple([self._of_leaf(leaf) for leaf in state.leaves]))

    def share(self, after: Cotangents, entering: State, leaving: State) -> Cotangents:
        """Return the slice's share of the cotangents of the whole batch.

        The cotangent of a leaf that is whole goes to the first slice.

        Args:
            after: The cotangents of the state that leaves the step.
            entering: The state of the whole batch that enters it.
            leaving: The state of the slice that leaves it.
        """
        shares: Cotangents = {}
        for place, g in after.items():
            if self.cuts(entering, leaving, place):
                shares[place] = g[self.start : self.start + self.size]
            elif self.start == 0:
                shares[place] = g
        return shares

    def cuts(self, entering: State, leaving: State, place: int) -> bool:
        """Return whether a leaf that leaves a step on the slice is a part of the batch's."""
        leaf = leaving.leaves[place]
        if entering.spec == leaving.spec:
            before = entering.leaves[place]
            whole = isinstance(before, Tensor) and not has_batch(before, self.batch)
            if whole and isinstance(leaf, Tensor) and leaf.shape == before.shape:
                return False
        return has_batch(leaf, min(self.size, self.batch - self.start))

    def _of_leaf(self, leaf: Any) -> Any:
        return leaf[self.start : self.start + self.size] if has_batch(leaf, self.batch) else leaf


def slices_of(batch: int, size: int) -> list[Slice]:
    """Return the slices of a batch; an empty batch is one slice."""
    return [Slice(start, size, batch) for start in range(0, max(batch, 1), size)]


def joined(index: int, entering: State, parts: Sequence[State], slices: Sequence[Slice]) -> State:
    """Return the state of the whole batch from the states of its slices.

    Raises:
        ChainError: If the slices differ in a leaf that is whole.
    """
    first, leaves = slices[0], []
    for place, leaf in enumerate(parts[0].leaves):
        column = [part.leaves[place] for part in parts]
        if first.cuts(entering, parts[0], place):
            leaves.append(torch.cat(column))
        elif all(_same(each, leaf) for each in column):
            leaves.append(leaf)
        else:
            raise ChainError(
                f"Step {index} returned a different {_described(leaf)} for each slice of "
                f"`micro_batch={first.size}`, so its value for the whole batch is not known. "
                "Return it with the batch as its first dimension, one entry a sample, leave it "
                "out, or pass `micro_batch=None`."
            )
    return parts[0]._replace(leaves=tuple(leaves))


def has_batch(leaf: Any, batch: int) -> bool:
    """Return whether a leaf is a tensor whose first dimension is the batch."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch


def batch_of(x_T: State) -> int:
    """Return the batch size of a state.

    Raises:
        ValueError: If it has no batch size.
    """
    sizes = [leaf.shape[0] for leaf in x_T.leaves if differentiable(leaf) and leaf.dim() > 0]
    if not sizes:
        raise ValueError(
            "`micro_batch` cuts the first dimension of the state, but `x` holds no floating tensor "
            "with one. Pass `micro_batch=None`."
        )
    return sizes[0]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and torch.equal(a, b))
    return a is b or bool(a == b)


def _described(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"tensor of shape {tuple(leaf.shape)}"
    return f"value ({leaf!r} for the first)"
