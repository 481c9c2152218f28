"""Sweeps: every direction applied to the same samples, for shifts from -S to S."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.directions.pairs import Progress


class Sweep(NamedTuple):
    """Samples shifted along one direction.

    Attributes:
        k: The direction.
        s: Shifts ``[m]``, evenly spaced from -S to S, with 0 in the middle.
        x: ``[N, m, C, H, W]``, on the subject's device.
    """

    k: int
    s: Tensor
    x: Tensor

    @property
    def unshifted(self) -> Tensor:
        """The samples for s = 0, ``[N, C, H, W]``."""
        return self.x[:, len(self.s) // 2]

    @property
    def change(self) -> Tensor:
        """The change from one end to the other, ``x(S) - x(-S)``, ``[N, C, H, W]``."""
        return self.x[:, -1] - self.x[:, 0]


def sweeps(
    subject: DirectionSet,
    *,
    num_samples: int,
    num_shifts: int,
    seed: int,
    batch_size: int = 64,
    progress: Progress = iter,
) -> Iterator[Sweep]:
    """Return the sweep of every direction, 0 to K-1, all on the same samples.

    Costs ``K * num_samples * (num_shifts - 1)`` shifted samples; memory holds the samples of one
    direction.

    Args:
        subject: The subject whose directions are applied.
        num_samples: N, at least 2.
        num_shifts: m, odd, at least 3.
        seed: Seed of x_T.
        batch_size: Samples at once.
        progress: Wraps the loop over directions.

    Raises:
        ValueError: If a number is out of range.
    """
    if num_samples < 2:
        raise ValueError(f"`samples` must be at least 2, got {num_samples}.")
    if num_shifts < 3 or num_shifts % 2 == 0:
        raise ValueError(
            "`shifts` must be odd, so that s = 0 is in the middle, and at least 3, got "
            f"{num_shifts}."
        )
    x_T = subject.noise(num_samples, seed=seed)
    return _made(subject, x_T, num_shifts, batch_size, progress)


def _made(
    subject: DirectionSet, x_T: Tensor, num_shifts: int, batch_size: int, progress: Progress
) -> Iterator[Sweep]:
    s = torch.linspace(-subject.S, subject.S, num_shifts, dtype=x_T.dtype, device=x_T.device)
    s[num_shifts // 2] = 0
    with torch.no_grad():
        x_0 = torch.cat([subject.real(part) for part in x_T.split(batch_size)])
    others = s[s != 0]
    start = x_T.repeat_interleave(len(others), 0).split(batch_size)
    batches = list(zip(start, others.repeat(len(x_T)).split(batch_size), strict=True))
    for k in progress(range(subject.K)):
        with torch.no_grad():
            parts = [subject.shifted(x, torch.full_like(at, k).long(), at) for x, at in batches]
        shifted = torch.cat(parts).view(len(x_T), len(others), *x_0.shape[1:])
        low, high = shifted.chunk(2, dim=1)
        yield Sweep(k, s, torch.cat([low, x_0[:, None], high], dim=1))
