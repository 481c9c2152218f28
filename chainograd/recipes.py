"""How a normalised tensor is made again from the norm's input, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainograd.errors import ChangedTensorError
from chainograd.states import versions
from chainograd.surroundings import Autocast, autocast_as

_any_autocast = torch._C._is_any_autocast_enabled


class Recipe(NamedTuple):
    """The calls that give a normalised tensor, in turn, each on the result of the one before.

    Attributes:
        source: Gives the norm's input.
        calls: The norm, then scales and shifts.
        constants: Tensors that the calls take besides.
        versions: How often each of them had been changed.
        autocast: What was in force; empty if nothing was.
    """

    source: Callable[[], Tensor]
    calls: tuple[Callable[[Tensor], Tensor], ...]
    constants: tuple[Tensor, ...]
    versions: list[int]
    autocast: tuple[Autocast, ...]

    def then(self, func: Callable[[Tensor, Any], Tensor], other: Any) -> Recipe:
        """Return the recipe with one more call: of a function of two, the second a constant."""
        added = (other,) if isinstance(other, Tensor) else ()
        return self._replace(
            calls=(*self.calls, lambda y: func(y, other)),
            constants=self.constants + added,
            versions=self.versions + versions(added),
        )

    def made(self) -> Tensor:
        """Return the tensor.

        Raises:
            ChangedTensorError: If a constant has changed since.
        """
        if versions(self.constants) != self.versions:
            raise ChangedTensorError(
                "A weight, scale or shift of a frozen norm was changed in place after the forward "
                "pass, so what followed the norm cannot be made again. Call `backward()` before "
                "in-place changes."
            )
        y = self.source()
        if not self.autocast and not _any_autocast():  # which takes longer than this question
            return self._called(y)
        kind = y.device.type
        off = Autocast(kind, False, torch.get_autocast_dtype(kind))
        with autocast_as(self.autocast or (off,)):
            return self._called(y)

    def _called(self, y: Tensor) -> Tensor:
        for call in self.calls:
            y = call(y)
        return y


def recipe_of_norm(
    node: Any, x: Tensor, norm: Callable[[Tensor], Tensor], weights: tuple[Tensor, ...]
) -> Recipe:
    """Return the recipe of a norm of x, from the graph's node that it made."""
    autocast = (Autocast.current(x.device.type),) if _any_autocast() else ()
    # What the norm saves: x, or x as it was cast or put in order for the kernel.
    if hasattr(node, "_saved_input"):
        return Recipe(lambda: node._saved_input, (norm,), weights, versions(weights), autocast)
    constants = (x, *weights)
    return Recipe(lambda: x, (norm,), constants, versions(constants), autocast)
