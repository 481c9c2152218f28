"""Grids: the times or noise levels of a sampler, checked once, when the sampler is built."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral, Real

from chainograd.samplers.schedule import NoiseSchedule


def falling(
    name: str, grid: Sequence[float], *, least: float, most: float, source: str
) -> tuple[float, ...]:
    """Return a grid as floats; raise unless it falls strictly.

    Args:
        name: The argument's name, for errors.
        grid: Two numbers or more.
        least: Lower bound of the last number.
        most: Upper bound of the first number.
        source: The function that makes such a grid, for errors.

    Raises:
        TypeError: If the grid holds something other than numbers.
        ValueError: If it does not fall or leaves the bounds.
    """
    if not all(isinstance(value, Real) for value in grid):
        raise TypeError(
            f"`{name}` must hold numbers, as `{source}` makes them, got {grid!r}. Pass "
            "`tensor.tolist()`. For a grid that is learned, write a step of your own that gets the "
            "grid as an argument of the chain."
        )
    inside = len(grid) >= 2 and least <= grid[-1] and grid[0] <= most
    if not inside or not all(t > s for t, s in pairwise(grid)):
        raise ValueError(
            f"`{name}` must hold two numbers or more that fall strictly and lie between {least} "
            f"and {most}, got {tuple(grid)}. `{source}` makes such a grid."
        )
    return tuple(float(value) for value in grid)


def falling_times(grid: Sequence[int], schedule: NoiseSchedule) -> tuple[int, ...]:
    """Return a grid of a schedule's indices; raise unless it falls strictly.

    Args:
        grid: Two indices or more in T-1 … -1.
        schedule: The noise schedule, of T training steps.

    Raises:
        TypeError: If the grid holds something other than integers.
        ValueError: If it does not fall or leaves the schedule.
    """
    source, last = "time_grid(num_steps, num_train_steps)", schedule.num_train_steps - 1
    falling("grid", grid, least=-1, most=last, source=source)
    if not all(isinstance(t, Integral) for t in grid):
        raise TypeError(
            f"`grid` must hold integers, the network's times, got {tuple(grid)}. "
            f"`{source}` makes such a grid."
        )
    return tuple(int(t) for t in grid)
