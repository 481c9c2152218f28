"""Guidance in turn: each step of the chain makes one of the two predictions of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from chainograd.adapters.diffusers.steps import Carry, SamplingStep, guided


class SamplingHalfStep(SamplingStep):
    """Half of a call with guidance: one of its two predictions, for a batch of N.

    Half 2j makes the unconditional prediction of call j and carries it in the state. Half 2j + 1
    makes the conditional prediction and the scheduler's step. Each half has the graph of one
    prediction.
    """

    def forward(self, carry: Carry, j: int, cond: Any, uncond: Any, w: Any) -> Carry:
        """Return the state after half j, which belongs to call j // 2."""
        j, second = divmod(j, 2)
        return self._second(carry, j, cond, w) if second else self._first(carry, j, uncond)

    def _first(self, carry: Carry, j: int, uncond: Any) -> Carry:
        call = self.opened(carry, j)
        asked = self.protocol.enter(call)
        memory = self.scheduler.memory_of(call.scheduler)
        carried: dict[str, Any] = {"scheduler": memory, "aside": call.aside}
        if asked is not None:
            x_in, t = asked
            # `enter` runs once a call, because it may draw noise.
            carried["asked"] = (x_in, t)
            carried["unconditional"] = self.predicted(x_in, t, uncond)
        return call.x, carried

    def _second(self, carry: Carry, j: int, cond: Any, w: Any) -> Carry:
        _, carried = carry
        call = self.opened(carry, j)
        output = None
        if "asked" in carried:
            x_in, t = carried["asked"]
            conditional = self.predicted(x_in, t, cond)
            output = guided(carried["unconditional"], conditional, self.scale(j, w))
        return self.closed(call, output)


def in_halves(grad_steps: Any, halves: int) -> Any:
    """Return ``grad_steps``, given in calls, as steps of the chain."""
    if halves == 1 or grad_steps is None:
        return grad_steps
    if callable(grad_steps):
        return lambda n: in_halves(grad_steps(n // halves), halves)
    if isinstance(grad_steps, int):
        return grad_steps * halves
    return {halves * j + k for j in grad_steps for k in range(halves)}


def of_sample(transform: Callable[[int, Tensor], Tensor], halves: int) -> Callable[..., Any]:
    """Return a transform for the chain that transforms the sample's cotangent before each call."""

    def transformed(i: int, g: Any) -> Any:
        g_x, rest = g
        if i % halves or g_x is None:
            return g
        return transform(i // halves, g_x), rest

    return transformed
