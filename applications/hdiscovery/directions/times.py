"""The times of a grid at which samples are shifted."""

from __future__ import annotations

from collections.abc import Sequence


def shifted_times(grid: Sequence[int], t_stop: int) -> tuple[int, ...]:
    """Return the times of a grid at which samples are shifted.

    Raises:
        ValueError: If there is none.
    """
    times = tuple(t for t in grid[:-1] if t >= t_stop)
    if not times:
        raise ValueError(
            f"`t_stop` {t_stop} leaves no step of the grid {tuple(grid)} to be shifted."
        )
    return times
