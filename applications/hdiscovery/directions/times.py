"""The times of a grid at which samples are shifted."""

from __future__ import annotations

from collections.abc import Sequence


def shifted_times(grid: Sequence[int], t_stop: int) -> tuple[int, ...]:
    """Return the times of a grid at which samples are shifted.

    Raises:
        ValueError: If no step is shifted.
    """
    times = tuple(t for t in grid[:-1] if t >= t_stop)
    if not times:
        raise ValueError(
            f"No step is shifted: every time of the grid {tuple(grid)} is below `t_stop` {t_stop}. "
            "Choose a smaller `t_stop`."
        )
    return times
