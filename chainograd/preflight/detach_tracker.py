"""Follows tensors that were cut off from their gradient."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from chainograd.preflight.observers import Call
from chainograd.preflight.sites import Site, site
from chainograd.state import differentiable
from chainograd.torch_internals.autograd import SET_GRAD_ENABLED


class Detach(NamedTuple):
    """How and where a tensor was cut off from the graph of its inputs."""

    kind: Literal["gradients off", "detached"]
    site: Site


def _any(_: Tensor) -> bool:
    return True


class DetachTracker:
    """Follows tensors that were cut off from a gradient, and all tensors computed from them.

    Args:
        counts: Returns whether the gradient of a tensor that requires one is wanted.

    Attributes:
        last: The last cut, whether the result depends on it or not.
        number: Where the user's code read a number from a tensor with a gradient.
        left: The cut of a tensor that became an array, which torch cannot follow.
    """

    def __init__(self, counts: Callable[[Tensor], bool] = _any) -> None:
        self.counts = counts
        self.last: Detach | None = None
        self.number: Site | None = None
        self.left: Detach | None = None
        self._turned_off: Site | None = None
        self._cuts: dict[int, tuple[weakref.ref[Tensor], bool, Detach]] = {}

    def of(self, tensor: Tensor) -> Detach | None:
        """Return where a tensor lost its gradient, if it did."""
        reference, had_graph, cut = self._cuts.get(id(tensor), (None, False, None))
        if reference is None or reference() is not tensor:
            return None
        # A custom autograd function runs with gradients off, and its result gets a graph later.
        return cut if had_graph or tensor.grad_fn is None else None

    def _wanted(self, given: list[Tensor]) -> bool:
        return any(tensor.requires_grad and self.counts(tensor) for tensor in given)

    def before(self, call: Call) -> None:
        """Note where gradients are turned off, and which tensors become numbers."""
        if call.name == SET_GRAD_ENABLED:
            if call.args[0]:
                self._turned_off = None
            elif torch.is_grad_enabled():
                self._turned_off = site()
        elif call.name in _TO_NUMBERS and self._wanted(call.given):
            self.last = Detach("detached", site())
            if self.last.site.direct:
                self.number = self.number or self.last.site
        elif call.name in _TO_ARRAYS:
            self.left = next(filter(None, map(self.of, call.given)), self.left)

    def after(self, call: Call, out: list[Tensor]) -> None:
        """Mark an operation's results if it cuts them off, or if an input was cut off."""
        made = [*filter(differentiable, out), *call.changed()]
        if not made or call.name.startswith(_OF_SHAPES):
            return
        cut = next((cut for cut in map(self.of, call.given) if cut is not None), None)
        if self._wanted(call.given):
            if _detaches(call):
                cut = self.last = Detach("detached", site())
            elif not torch.is_grad_enabled():
                cut = self.last = Detach("gradients off", self._turned_off or site())
        if cut is not None:
            for tensor in made:
                if tensor.grad_fn is not None or not tensor.requires_grad:  # not a new leaf
                    self._cuts[id(tensor)] = (weakref.ref(tensor), tensor.grad_fn is not None, cut)


_TO_ARRAYS = {"tolist", "numpy", "__array__"}
_TO_NUMBERS = {"item", "tolist", "numpy", "__float__", "__int__", "__array__"}
# The values of their results do not depend on the values of their inputs.
_OF_SHAPES = ("zeros", "ones", "empty", "full", "rand", "new_", "bernoulli", "multinomial")


def _detaches(call: Call) -> bool:
    if call.name == "__get__":
        return call.func == Tensor.data.__get__  # type: ignore[attr-defined]
    if call.func is torch.autograd.grad:
        return not call.kwargs.get("create_graph")
    return call.name in ("detach", "detach_")
