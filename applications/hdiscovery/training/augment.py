"""Augmented pairs: both images of a pair are turned, scaled and moved alike."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ANGLE = 15.0  # degrees
SCALE = 0.1
MOVE = 0.125  # of half an edge: two pixels of 32


def moved_alike(x_0: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor]:
    """Turn, scale and move the two images of each pair by the same amounts, drawn for each pair.

    Augmentation changes what tells one pair from another, and hardly what tells directions apart:
    a reconstructor that sees a pair often cannot memorise it. Angles are drawn from +-15 degrees,
    scales from 0.9 to 1.1, moves from +-1/16 of an edge; the border is repeated. The draws come
    from the CPU's global stream, so they are the same on every device.

    Args:
        x_0: ``[N, C, E, E]``.
        shifted: ``[N, C, E, E]``.

    Returns:
        Both, moved.
    """
    n, channels = x_0.shape[:2]
    angle, scale, right, down = (2 * torch.rand(4, n) - 1).to(x_0)
    angle, scale = angle * math.radians(ANGLE), 1 + scale * SCALE
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = (cos, -sin, right * MOVE, sin, cos, down * MOVE)
    grid = F.affine_grid(
        torch.stack(rows, 1).view(n, 2, 3), [n, 2 * channels, *x_0.shape[2:]], align_corners=False
    )
    both = torch.cat([x_0, shifted], 1)
    moved = F.grid_sample(both, grid, padding_mode="border", align_corners=False)
    return moved[:, :channels], moved[:, channels:]
