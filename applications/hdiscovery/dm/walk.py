"""The unshifted way of a sample: where it begins, where it passes in h-space, where it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from chainograd.samplers import DDIM, NoiseSchedule, ddim_update, time_grid
from chainograd.samplers.prediction import predicted_data
from hdiscovery.dm.hspace import Encoded, HSpaceUNet
from hdiscovery.dm.model import DiffusionModel

AT_ONCE = 64  # samples in one pass through the network


class Node(NamedTuple):
    """One step of DDIM, without a shift.

    Attributes:
        t: Its time.
        x: State at t, ``[N, C, H, W]``.
        encoded: What the encoder returns for x.
        h: ``[N, *h_shape]``.
        P: Predicted x_0.
        x_next: State at the next time of the grid.
    """

    t: int
    x: Tensor
    encoded: Encoded
    h: Tensor
    P: Tensor
    x_next: Tensor


class Bottleneck(NamedTuple):
    """Where a batch is in h-space: time t, h ``[N, C, H, W]`` and the embedding ``[N, E]``."""

    t: int
    h: Tensor
    embedding: Tensor


def draw_noise(dm: DiffusionModel, n: int, seed: int) -> Tensor:
    """Return x_T of n samples, ``[n, C, H, W]``, the same on every device.

    Raises:
        ValueError: If ``n`` is less than 1.
    """
    if n < 1:
        raise ValueError(f"`samples` must be at least 1, got {n}.")
    x_T = torch.randn(n, *dm.image_shape, generator=torch.Generator().manual_seed(seed))
    return x_T.to(dm.device)


def trajectory(
    dm: DiffusionModel, grid: Sequence[int], x_T: Tensor, *, t_stop: int = 0
) -> Iterator[Node]:
    """Yield the nodes from ``x_T`` on, those at times of at least ``t_stop``, without a graph.

    Args:
        dm: The diffusion model.
        grid: Times as from `time_grid`.
        x_T: ``[N, C, H, W]`` on the model's device.
        t_stop: Nodes before this time are left out; at 0 the last ``x_next`` is x_0.
    """
    x = x_T
    for t, t_next in pairwise(grid):
        if t < t_stop:
            return
        with torch.no_grad():
            encoded = dm.unet.encode(x, x.new_full((len(x),), t).long())
            h = dm.unet.middle(encoded)
            epsilon = dm.unet.decode(h, encoded)[:, : x.shape[1]].to(x.dtype)
            a_t, a_next = dm.schedule.alpha_bar(t), dm.schedule.alpha_bar(t_next)
            P = predicted_data(x, epsilon, alpha_bar_t=a_t)
            x_next = ddim_update(x, epsilon, alpha_bar_t=a_t, alpha_bar_s=a_next)
        yield Node(t, x, encoded, h, P, x_next)
        x = x_next


def bottlenecks(
    dm: DiffusionModel, x_T: Tensor, grid: Sequence[int], *, t_stop: int
) -> Iterator[Bottleneck]:
    """Yield h of every shifted step along the unshifted sampler, without a graph.

    Args:
        dm: The diffusion model.
        x_T: ``[N, C, H, W]``.
        grid: Times as from `time_grid`.
        t_stop: Last time (inclusive) that is yielded; the sampler stops there.
    """
    for node in trajectory(dm, grid, x_T, t_stop=t_stop):
        yield Bottleneck(node.t, node.h, node.encoded.embedding)


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
        for x in x_T.to(next(unet.parameters()).device).split(AT_ONCE):
            for i in range(num_steps):
                x = step(x, i)
            parts.append(x)
    return torch.cat(parts)
