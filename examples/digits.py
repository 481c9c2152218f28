"""What the examples share: the shipped model of digits as a sampler, noise, sheets of samples."""

from __future__ import annotations

import torch
from hdiscovery.dm.open import load_dm
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

from chainograd.samplers import DDIM, time_grid


def sampler(num_steps: int) -> DDIM:
    """Return the shipped model of MNIST digits, its weights frozen, as DDIM in ``num_steps`` steps.

    The "author" grid ends at t = 0 and does not evaluate the network there. With few steps, this
    saves one evaluation for an earlier time, where it matters more.
    """
    dm = load_dm("MNIST32-small")
    return DDIM(dm.unet, dm.schedule, time_grid(num_steps, convention="author"))


def noise(count: int, *, seed: int) -> Tensor:
    """Return x_T, ``[count, 1, 32, 32]``, which depends only on ``seed``."""
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def sheet(axes: Axes, images: Tensor, title: str, *, columns: int | None = None) -> None:
    """Draw digits side by side, ink on paper.

    Args:
        axes: The axes to draw on.
        images: ``[N, 1, H, W]``, ink is 1 and paper -1; NaN is drawn light blue.
        title: Title of the sheet.
        columns: Digits in a row; by default all of them.
    """
    columns = columns or len(images)
    rows = [torch.cat(list(row.squeeze(1)), dim=1) for row in images.detach().split(columns)]
    colours = colormaps["gray_r"].with_extremes(bad="lightblue")
    axes.imshow(torch.cat(rows).numpy(), cmap=colours, vmin=-1, vmax=1)
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_axis_off()
