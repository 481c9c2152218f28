"""Gradients of what all steps share, added up from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Note [Sums in order]
# 1. The plain loop adds up a gradient use by use, from the last step to the first. To give the same
#    bits, a tensor that a step uses more than once is among the outputs that are differentiated,
#    with the sum so far as its cotangent: the step's backward starts from there.
# 2. A tensor that a step uses once has one gradient there, and adding it afterwards is the same.
# 3. All of a step's gradients beside all sums would be twice the memory of the weights. So a large
#    gradient is added at once, as soon as the operation that it comes from has run, and never
#    leaves that operation.
# 4. If memory runs out in between, the step is done again. What was added by then is known.

LARGE = 1 << 14  # bytes of a gradient that is worth a hook


class Use(NamedTuple):
    """Where a step uses a leaf.

    Attributes:
        leaf: The leaf.
        operation: Node of the graph that its gradient comes from; None if the step gives the leaf
            itself.
        place: Which of the operation's gradients it is.
    """

    leaf: Tensor
    operation: Any
    place: int


Uses = dict[int, list[Use]]  # by the place of the tensor among those that the steps share
Asked = list[tuple[int, Tensor]]  # tensors that gradients are wanted of, after their places


class Sums:
    """The gradients so far, one for each tensor that the steps share; None before the first.

    Attributes:
        values: The gradients.
        added: Those that the step at hand was added to.
    """

    def __init__(self, count: int) -> None:
        self.values: list[Tensor | None] = [None] * count
        self.added: set[int] = set()

    def begin(self) -> None:
        """Turn to another step, or to another slice of one."""
        self.added.clear()

    def missing(self, uses: Uses) -> list[int]:
        """Return the places of what the step at hand uses and was not added to."""
        return [at for at in uses if at not in self.added]

    def roots(self, asked: Asked, uses: Uses) -> list[tuple[Tensor, Tensor]]:
        """Return what is to be differentiated besides the state, with the sums as cotangents."""
        pairs = [(leaf, self.values[at]) for at, leaf in asked if not _once(uses, at)]
        return [(leaf, so_far) for leaf, so_far in pairs if so_far is not None]

    def add_early(self, asked: Asked, uses: Uses) -> None:
        """Let large gradients be added as soon as they are there; they then arrive as None."""
        for at, _ in asked:
            so_far = self.values[at]
            if so_far is not None and so_far.nbytes >= LARGE and _once(uses, at):
                ((_, operation, place),) = uses[at]
                if operation is not None:
                    operation.register_hook(self._adding(at, place, _stream(so_far)))

    def _adding(self, at: int, place: int, stream: object) -> Callable[..., Any]:
        def add(gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...] | None:
            g = gradients[place]
            # On another stream the sum might not be ready. The engine brings the gradient over.
            if g is None or _stream(g) != stream:
                return None
            self._add(at, g)
            return (*gradients[:place], None, *gradients[place + 1 :])

        return add

    def add_late(self, asked: Asked, arrived: Sequence[Tensor | None], uses: Uses) -> None:
        """Add the gradients that arrived; of what was among the roots they are the sums."""
        for (at, _), g in zip(asked, arrived, strict=True):
            if g is None:
                continue
            if _once(uses, at):
                self._add(at, g)
            else:
                self.values[at] = g
                self.added.add(at)

    def _add(self, at: int, g: Tensor) -> None:
        so_far = self.values[at]
        self.values[at] = g if so_far is None else _plus(so_far, g)
        self.added.add(at)


def _once(uses: Uses, at: int) -> bool:
    """Return whether a tensor is used once; of shards it is not known."""
    return len(uses.get(at, ())) == 1


def _plus(so_far: Tensor, g: Tensor) -> Tensor:
    # Not in place: the first gradient can be someone else's too, as that of both terms of a sum.
    return g + so_far if so_far.is_sparse and not g.is_sparse else so_far + g


def _stream(tensor: Tensor) -> object:
    return torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None
