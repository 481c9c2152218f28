"""Samples of a diffusion model, without a shift and without a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from chainograd.samplers import DDIM, NoiseSchedule, time_grid
from hdiscovery.dm.hspace import HSpaceUNet


def sample(
    unet: HSpaceUNet, schedule: NoiseSchedule, count: int, *, num_steps: int = 20, seed: int = 0
) -> Tensor:
    """Return DDIM samples of noise that depends on ``seed`` alone.

    Args:
        unet: The noise-prediction network, on any device.
        schedule: Its noise schedule.
        count: How many.
        num_steps: M.
        seed: Of x_T.

    Returns:
        ``[count, C, H, W]`` on the network's device, nominally in [-1, 1], not clamped.
    """
    C = unet.image_shape[0]
    x_T = torch.randn(count, *unet.image_shape, generator=torch.Generator().manual_seed(seed))
    grid = time_grid(num_steps, schedule.num_train_steps)
    step = DDIM(lambda x, t: unet(x, t)[:, :C], schedule, grid)
    parts = []
    with torch.no_grad():
        for x in x_T.to(next(unet.parameters()).device).split(64):
            for i in range(num_steps):
                x = step(x, i)
            parts.append(x)
    return torch.cat(parts)
