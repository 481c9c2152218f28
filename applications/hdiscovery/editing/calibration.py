"""Calibration: for each direction, the strength s at which all directions change images equally."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hdiscovery.directions.about import Calibration
from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.editing.distance import Features, distance
from hdiscovery.editing.editor import edit
from hdiscovery.editing.inversion import generate

LEVELS = (0.125, 0.25, 0.5, 0.75, 1.0)  # of S
MIDDLE = LEVELS.index(0.5)

Progress = Callable[[range], Iterable[int]]


def calibrate(
    directions: DirectionSet, features: Features, x_T: Tensor, *, progress: Progress = iter
) -> Calibration:
    """Return the strength at which each direction makes the same change.

        change_k(s) = mean over n and over +s, -s of distance(x_0[n], x_0[n] shifted by s along k)

    The change is measured at five strengths up to S and interpolated linearly in between. The
    target is the median over k of change_k(S/2), so half of the directions reach it by S/2.

    Costs 10 K n samples of M steps.

    Args:
        directions: The directions.
        features: Features that the distance compares.
        x_T: Noise of n samples, ``[n, C, H, W]``.
        progress: Wraps the loop over directions, as ``tqdm`` does.
    """
    S, M = directions.S, directions.M
    x_0 = generate(directions.dm, x_T, num_steps=M, convention=directions.sampler.convention)
    levels = [level * S for level in LEVELS]
    s = torch.tensor([sign * level for level in levels for sign in (1, -1)])[:, None]
    changes = []
    for k in progress(range(directions.K)):
        shifted = edit(directions, x_T, [k], s, num_steps=M).flatten(0, 1)
        change = distance(features, x_0.repeat_interleave(len(s), 0), shifted)
        changes.append(change.view(len(x_T), len(levels), 2).mean((0, 2)).tolist())
    target = statistics.median(change[MIDDLE] for change in changes)
    scales = tuple(strength_of(target, levels, change) for change in changes)
    return Calibration(scales, target, features.name, len(x_T))


def strength_of(target: float, s: Sequence[float], change: Sequence[float]) -> float | None:
    """Return the first s at which a change that is 0 for s = 0 reaches a target, or None.

    Example:
        >>> strength_of(3.0, [1.0, 2.0], [2.0, 4.0])
        1.5
        >>> strength_of(5.0, [1.0, 2.0], [2.0, 4.0]) is None
        True
    """
    for (s_a, a), (s_b, b) in pairwise(zip((0.0, *s), (0.0, *change), strict=True)):
        if a <= target <= b and a < b:
            return s_a + (target - a) / (b - a) * (s_b - s_a)
    return None
