"""A normalised tensor, recomputed to the bit from the input of its norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainograd.errors import ChangedTensorError
from chainograd.replay.autocast import Autocast, autocast_as
from chainograd.state import versions
from chainograd.torch_internals.saved_tensors import saved_tensor
from chainograd.torch_internals.settings import any_autocast


class Recomputation(NamedTuple):
    """The calls that compute a normalised tensor, each on the result of the call before.

    Attributes:
        x: The norm's input.
        calls: The norm, then scales and shifts.
        constants: The tensors that the calls use, x among them.
        versions: How often each constant had been changed.
        autocast: The autocast state that was in force; empty if autocast was off.
    """

    x: Tensor
    calls: tuple[Callable[[Tensor], Tensor], ...]
    constants: tuple[Tensor, ...]
    versions: list[int]
    autocast: tuple[Autocast, ...]

    def then(self, func: Callable[[Tensor, Any], Tensor], other: Any) -> Recomputation:
        """Return the recomputation followed by the call of a function with a constant."""
        added = (other,) if isinstance(other, Tensor) else ()
        return self._replace(
            calls=(*self.calls, lambda y: func(y, other)),
            constants=self.constants + added,
            versions=self.versions + versions(added),
        )

    def result(self) -> Tensor:
        """Recompute the tensor.

        Raises:
            ChangedTensorError: If a constant has changed since.
        """
        refuse_changed(self.constants, self.versions)
        if not self.autocast and not any_autocast():  # cheaper than entering a context
            return self._result()
        kind = self.x.device.type
        off = Autocast(kind, False, torch.get_autocast_dtype(kind))
        with autocast_as(self.autocast or (off,)):
            return self._result()

    def _result(self) -> Tensor:
        y = self.x
        for call in self.calls:
            y = call(y)
        return y


def recomputation_of_norm(
    node: Any, x: Tensor, norm: Callable[[Tensor], Tensor], weights: tuple[Tensor, ...]
) -> Recomputation:
    """Return the recomputation of a norm of x whose graph node is ``node``."""
    kind = x.device.type
    casts = any_autocast() and torch.amp.is_autocast_available(kind)
    # The norm saves x, or x cast by autocast or made contiguous for the kernel.
    x = saved_tensor(node, "input", x)
    constants = (x, *weights)
    return Recomputation(
        x, (norm,), constants, versions(constants), (Autocast.current(kind),) if casts else ()
    )


def cast_again(weight: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Return a function that repeats autocast's cast of a weight, and refuses a changed weight."""
    before = versions([weight])

    def cast() -> Tensor:
        refuse_changed([weight], before)
        return weight.to(dtype)

    return cast


def refuse_changed(constants: Sequence[Tensor], before: list[int]) -> None:
    """Check that no constant of a recomputation has changed in place.

    Raises:
        ChangedTensorError: If a constant has changed.
    """
    if versions(constants) != before:
        raise ChangedTensorError(
            "A tensor that a frozen layer used (its weight or input, or the scale or shift of a "
            "norm) was changed in place before the backward pass, so the layer's saved tensors "
            "cannot be recomputed. Call `backward()` before in-place changes, change a copy, or "
            "pass `frozen='off'`."
        )
