"""Calls: how a pipeline's loop uses a scheduler around one evaluation of the network.

    x_in, t = enter(scheduler, x, j)            the network's arguments
    x'      = leave(scheduler, output, x, j)    the scheduler's step

Most schedulers are used in the ordinary way, one call a step. Schedulers with a predictor and a
corrector make several calls a step, and a few need more than the ordinary arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from chainograd.adapters.networks import undecorated


class Call(NamedTuple):
    """One call of the network.

    Attributes:
        scheduler: A copy of the scheduler with its memory of earlier calls. The call may change it.
        x: The sample.
        j: Index of the call.
        aside: What the loop itself carries from call to call.
        options: Further arguments of the scheduler's step.
    """

    scheduler: Any
    x: Tensor
    j: int
    aside: dict[str, Any]
    options: Mapping[str, Any]

    @property
    def t(self) -> Any:
        """The scheduler's time in this call."""
        return self.scheduler.timesteps[self.j]

    def of(self, name: str, *args: Any, **options: Any) -> Any:
        """Call a method of the scheduler with gradients on, and return its results."""
        method = undecorated(getattr(self.scheduler, name))
        return method(*args, **{**self.options, **options}, return_dict=False)


class Protocol(NamedTuple):
    """How a loop uses a scheduler.

    Attributes:
        calls: Returns the number of calls in a loop.
        enter: Returns the network's arguments, or None if the call skips the network.
        leave: Returns the next sample.
    """

    calls: Callable[[Any], int]
    enter: Callable[[Call], tuple[Tensor, Any] | None]
    leave: Callable[[Call, Any], Tensor]


def every_time(scheduler: Any) -> int:
    """Return the number of calls of a loop that makes one call a time."""
    return len(scheduler.timesteps)
