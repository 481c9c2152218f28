"""The noise schedules that a file can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from chainograd.samplers.schedule import NoiseSchedule

ScheduleName = Literal["linear", "cosine"]
SCHEDULES: dict[ScheduleName, Callable[[int], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "cosine": NoiseSchedule.cosine,
}


def schedule_name(schedule: NoiseSchedule) -> ScheduleName | None:
    """Return the name under which a diffusion model's file keeps this schedule, or None.

    Example:
        >>> schedule_name(NoiseSchedule.cosine(50))
        'cosine'
        >>> schedule_name(NoiseSchedule.from_betas(torch.full((50,), 0.1))) is None
        True
    """
    T = schedule.num_train_steps
    named: dict[ScheduleName, NoiseSchedule] = {"cosine": NoiseSchedule.cosine(T)}
    if T > 20:  # below, the linear one would reach a beta of 1
        named["linear"] = NoiseSchedule.linear(T)
    for name, known in named.items():
        # Betas that went through float32 differ by its rounding at the largest of them, 0.02 or 1.
        if torch.allclose(schedule.betas, known.betas, rtol=1e-6, atol=2e-9):
            return name
    return None
