"""How a normalised tensor is made again from the norm's input, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainograd.errors import ChangedTensorError
from chainograd.replay.context import Autocast, autocast_as
from chainograd.state import versions

_any_autocast = torch._C._is_any_autocast_enabled


class Recomputation(NamedTuple):
    """The calls that give a normalised tensor, in turn, each on the result of the one before.

    Attributes:
        x: The norm's input.
        calls: The norm, then scales and shifts.
        constants: Tensors that the calls take, x among them.
        versions: How often each of them had been changed.
        autocast: What was in force; empty if nothing was.
    """

    x: Tensor
    calls: tuple[Callable[[Tensor], Tensor], ...]
    constants: tuple[Tensor, ...]
    versions: list[int]
    autocast: tuple[Autocast, ...]

    def then(self, func: Callable[[Tensor, Any], Tensor], other: Any) -> Recomputation:
        """Return the recomputation with one more call, of a function with a constant."""
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
        refuse_changed(self.constants, self.versions)
        if not self.autocast and not _any_autocast():  # which takes longer than this question
            return self._made()
        kind = self.x.device.type
        off = Autocast(kind, False, torch.get_autocast_dtype(kind))
        with autocast_as(self.autocast or (off,)):
            return self._made()

    def _made(self) -> Tensor:
        y = self.x
        for call in self.calls:
            y = call(y)
        return y


def recomputation_of_norm(
    node: Any, x: Tensor, norm: Callable[[Tensor], Tensor], weights: tuple[Tensor, ...]
) -> Recomputation:
    """Return the recomputation of a norm of x, from the graph's node that it made."""
    kind = x.device.type
    casts = _any_autocast() and torch.amp.is_autocast_available(kind)
    # What the norm saves: x, or x as it was cast or put in order for the kernel.
    x = getattr(node, "_saved_input", x)
    constants = (x, *weights)
    return Recomputation(
        x, (norm,), constants, versions(constants), (Autocast.current(kind),) if casts else ()
    )


def cast_again(weight: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Return what casts a weight as autocast cast it, if it is what it was."""
    before = versions([weight])

    def cast() -> Tensor:
        refuse_changed([weight], before)
        return weight.to(dtype)

    return cast


def refuse_changed(constants: Sequence[Tensor], before: list[int]) -> None:
    """Check that nothing that is used in the backward pass has changed in place.

    Raises:
        ChangedTensorError: If something has.
    """
    if versions(constants) != before:
        raise ChangedTensorError(
            "A tensor that a frozen layer used (its weight or input, a scale or shift of a norm) "
            "was changed in place since, so what the backward pass needs cannot be made again. "
            "Call `backward()` before in-place changes, change a copy, or pass `frozen='off'`."
        )
