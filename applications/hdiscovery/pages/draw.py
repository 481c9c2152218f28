"""Strips: samples shifted step by step along a direction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hdiscovery.directions.direction_set import DirectionSet

Progress = Callable[[Sequence[int]], Iterable[int]]
AT_ONCE = 64  # images in one pass through the sampler


def even_shifts(S: float, columns: int) -> list[float]:
    """Return ``columns`` evenly spaced shifts from -S to S.

    Args:
        S: The largest shift.
        columns: Number of shifts, odd, so that 0, the sample itself, is in the middle.

    Raises:
        ValueError: If ``columns`` is even or less than 3.

    Example:
        >>> even_shifts(5.0, 5)
        [-5.0, -2.5, 0.0, 2.5, 5.0]
    """
    if columns % 2 == 0 or columns < 3:
        raise ValueError(
            f"`shifts` must be odd, for s = 0 in the middle, and at least 3, got {columns}."
        )
    half = columns // 2
    return [S * (j - half) / half for j in range(columns)]


def draw_strips(
    directions: DirectionSet, k: int, *, samples: int, shifts: Sequence[float], seed: int
) -> Tensor:
    """Return samples shifted along direction k. Equal seeds use equal samples for every k.

    Costs ``samples * len(shifts)`` runs of the sampler.

    Args:
        directions: The directions, on any device.
        k: Index of the direction, from 0.
        samples: Number of samples, at least 1.
        shifts: The shifts of each sample.
        seed: Seed of x_T.

    Returns:
        ``[samples, len(shifts), C, H, W]`` in [-1, 1], on the CPU.

    Raises:
        ValueError: If ``k`` or ``samples`` is out of range.
    """
    K, count, device = directions.K, len(shifts), directions.device
    if not 0 <= k < K:
        raise ValueError(f"`k` must lie in 0 … {K - 1}, got {k}.")
    if samples < 1:
        raise ValueError(f"`samples` must be at least 1, got {samples}.")
    generator = torch.Generator().manual_seed(seed)
    x_T = torch.randn(samples, *directions.dm.image_shape, generator=generator)
    x_T = x_T.repeat_interleave(count, 0)
    s = torch.tensor(list(shifts), dtype=x_T.dtype).repeat(samples)
    with torch.no_grad():
        parts = [
            directions.shifted(x.to(device), torch.full((len(x),), k, device=device), s.to(device))
            for x, s in zip(x_T.split(AT_ONCE), s.split(AT_ONCE), strict=True)
        ]
    x_0 = torch.cat([part.float().cpu() for part in parts]).clamp(-1, 1)
    return x_0.view(samples, count, *x_0.shape[1:])
