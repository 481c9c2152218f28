"""The unshifted way of a sample, node by node, with all that the network says on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from chainograd.samplers import ddim_update
from chainograd.samplers.prediction import predicted_data
from hdiscovery.dm.files import DiffusionModel
from hdiscovery.dm.hspace import Encoded


class Node(NamedTuple):
    """One step of DDIM, without a shift.

    Attributes:
        t: Its time.
        x: State at t, ``[N, C, H, W]``.
        encoded: What the encoder makes of it.
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
            epsilon = dm.unet.decode(h, encoded)[:, : x.shape[1]]
            a_t, a_next = dm.schedule.alpha_bar(t), dm.schedule.alpha_bar(t_next)
            P = predicted_data(x, epsilon, alpha_bar_t=a_t)
            x_next = ddim_update(x, epsilon, alpha_bar_t=a_t, alpha_bar_s=a_next)
        yield Node(t, x, encoded, h, P, x_next)
        x = x_next
