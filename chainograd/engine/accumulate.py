"""Gradients of what all steps share, added up from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainograd.tensors.devices import current_stream
from chainograd.tensors.parts import is_plain

# Note [Sums in order]
# 1. The plain loop adds up a gradient use by use, from the last step to the first. To get the same
#    bits, the chain puts a tensor that a step uses more than once among the outputs that are
#    differentiated, with the sum so far as its cotangent: the step's backward starts from there.
# 2. A tensor that a step uses once has one gradient there, and adding it afterwards is the same.
# 3. All of a step's gradients beside all sums would be twice the memory of the weights. So a large
#    gradient is added as soon as the operation that it comes from has run, and never leaves that
#    operation.
# 4. If memory runs out in between, the step runs again. The accumulator knows what it has added.
# 5. Somebody else may hold the first gradient, too: both terms of a sum get the same tensor. Adding
#    the second gradient makes a new tensor, and all later ones are added to that in place.

LARGE = 1 << 14  # bytes of a gradient that is worth a hook


# Where a step uses a leaf: the leaf, the node of the graph that its gradient comes from (None if
# the step returns the leaf itself), and which of that node's gradients it is.
Use = tuple[Tensor, Any, int]
Uses = dict[int, list[Use]]  # by the place of the tensor among those that the steps share


class Asked(NamedTuple):
    """What a step's backward is asked for of the tensors that the steps share.

    Attributes:
        places: The places of the tensors whose gradients are asked for.
        leaves: These tensors.
        roots: The tensors to differentiate as well, with the sums so far as cotangents.
    """

    places: list[int]
    leaves: list[Tensor]
    roots: list[tuple[Tensor, Tensor]]


class GradAccumulator:
    """The gradients so far, one for each tensor that the steps share; None before the first.

    Attributes:
        values: The gradients.
        added: Places of the gradients that the current step was added to.
        own: Places of the gradients that nobody else holds.
    """

    def __init__(self, count: int) -> None:
        self.values: list[Tensor | None] = [None] * count
        self.added: set[int] = set()
        self.own: set[int] = set()

    def begin(self) -> None:
        """Turn to another step, or to another slice of one."""
        self.added.clear()

    def ask(self, uses: Uses, shared: Sequence[Tensor]) -> Asked:
        """Return what a step's backward is asked for besides the state.

        It lets large gradients be added as soon as they are there; they then arrive as None.
        """
        asked = Asked([], [], [])
        for at, where in uses.items():
            leaf, so_far = shared[at], self.values[at]
            # A tensor that was frozen since then is left out, as the plain loop leaves it out.
            if at in self.added or not leaf.requires_grad:
                continue
            asked.places.append(at)
            asked.leaves.append(leaf)
            if so_far is None:
                continue
            if len(where) > 1:
                asked.roots.append((leaf, so_far))
            elif _large(so_far):
                _, operation, place = where[0]
                if operation is not None:
                    operation.register_hook(self._adding(at, place, so_far))
        return asked

    def _adding(self, at: int, place: int, so_far: Tensor) -> Callable[..., Any]:
        stream = _stream(so_far)

        def add(gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...] | None:
            g = gradients[place]
            # On another stream the sum might not be ready. The engine brings the gradient over.
            if g is None or _stream(g) != stream:
                return None
            self._add(at, g)
            return (*gradients[:place], None, *gradients[place + 1 :])

        return add

    def take(self, asked: Asked, arrived: Sequence[Tensor | None], uses: Uses) -> None:
        """Add the gradients that arrived; the gradients of the roots are sums already."""
        for at, g in zip(asked.places, arrived, strict=True):
            if g is None:
                continue
            if len(uses[at]) > 1:
                self.values[at] = g
                self.added.add(at)
            else:
                self._add(at, g)

    def _add(self, at: int, g: Tensor) -> None:
        so_far = self.values[at]
        if so_far is None:
            self.values[at] = g
        elif at in self.own and _is_strided(so_far) and _is_strided(g):
            so_far.add_(g)
        else:
            self.values[at] = g + so_far if so_far.is_sparse and not g.is_sparse else so_far + g
            self.own.add(at)
        self.added.add(at)


def _is_strided(g: Tensor) -> bool:
    return type(g) is Tensor and is_plain(g)


def _large(g: Tensor) -> bool:
    return g.layout is torch.strided and g.nbytes >= LARGE


def _stream(tensor: Tensor) -> object:
    return current_stream(tensor.device)
