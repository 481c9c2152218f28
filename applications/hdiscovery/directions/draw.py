"""What a training step draws: noise, directions and shifts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Drawn(NamedTuple):
    """Noise x_T ``[n, C, H, W]``, directions k ``[n]`` and shifts s ``[n]``."""

    x_T: Tensor
    k: Tensor
    s: Tensor


def draw(
    n: int,
    image_shape: tuple[int, int, int],
    *,
    K: int,
    S: float,
    min_shift: float = 0.0,
    device: torch.device | str = "cpu",
) -> Drawn:
    """Draw ``x_T`` from N(0, I), and k and s, one for each sample.

    ``k ~ U{0 … K-1}``; ``s ~ U[-S, S]`` without the shifts nearer to 0 than ``min_shift``. All of
    it comes from the CPU's global stream, so it is the same on every device.
    """
    x_T = torch.randn(n, *image_shape)
    k = torch.randint(K, (n,))
    s = 2 * torch.rand(n) - 1
    s = s * (S - min_shift) + s.sign() * min_shift
    return Drawn(x_T.to(device), k.to(device), s.to(device))
