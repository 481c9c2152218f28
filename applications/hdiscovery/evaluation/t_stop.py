"""Choose t_stop from the model: the time at which the predicted x_0 stops resembling the sample.

    d(t)   = E distance(P_t, x_0)
    t_stop = min {t : d(t) >= threshold}

P_t is the x_0 that the model predicts at time t while it samples without shifts, and x_0 is the
finished sample. Shifts at times t >= t_stop change what is still undecided at t_stop and keep what
is settled.

With LPIPS the threshold is 0.275: in the tables that Asyrp ships, LPIPS(P_t, x_0) at the paper's
own t_stop is 0.277 (CelebA-HQ, 500) and 0.274 (AFHQ-dog, 400). Other nets have other scales. For
them the threshold is a share of the distance between two unrelated samples; the default share of
0.5 is this project's choice, not the paper's.

References:
    Kwon et al. (2022), Diffusion Models Already Have a Semantic Latent Space, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chainograd.samplers import time_grid
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.walk import trajectory
from hdiscovery.evaluation.drawing import plain_axes, save_figure

LPIPS_THRESHOLD = 0.275
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A t_stop and the curve it was read from.

    Attributes:
        t_stop: The first time, from 0 upwards, at which the distance reaches the threshold.
        threshold: The threshold.
        times: Times of the curve, rising.
        distances: d(t) at each time.
        unrelated: Mean distance of two unrelated samples.
        samples: Samples that the means are over.
        features: Name and hash of the feature net.
    """

    t_stop: int
    threshold: float
    times: list[int]
    distances: list[float]
    unrelated: float
    samples: int
    features: dict[str, Any]

    def at(self, t: int) -> float:
        """Return d(t), linearly interpolated between the curve's times."""
        return float(np.interp(t, self.times, self.distances))


def choose_t_stop(
    dm: DiffusionModel,
    distance: Distance,
    *,
    features: dict[str, Any],
    threshold: float | None = None,
    share: float | None = None,
    num_samples: int = 100,
    num_steps: int = 50,
    seed: int = 4,
    batch_size: int = 50,
) -> Chosen:
    """Return t_stop by the rule above.

    Args:
        dm: The diffusion model.
        distance: A function from two batches of images ``[N, C, H, W]`` to the distance of each
            pair ``[N]``, or to the mean distance.
        features: Name and hash of the feature net, for the report.
        threshold: Smallest distance at t_stop. Pass this or ``share``.
        share: The threshold as a share of the distance between two unrelated samples.
        num_samples: Samples, at least 2.
        num_steps: Sampling steps; t_stop is one of their times, 1000/``num_steps`` apart.
        seed: Seed of the samples.
        batch_size: Samples at once.

    Raises:
        ValueError: If both or neither of ``threshold`` and ``share`` are passed, a number is out
            of range, or the distance never reaches the threshold.
    """
    if (threshold is None) == (share is None):
        raise ValueError(
            f"Pass exactly one of `threshold` and `share`, got threshold={threshold} and "
            f"share={share}."
        )
    for name, value in (("threshold", threshold), ("share", share)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be positive and finite, got {value}.")
    for name, value in (("samples", num_samples), ("steps", num_steps)):
        if value < 2:
            raise ValueError(f"`{name}` must be at least 2, got {value}.")
    times, d, unrelated = curve(dm, distance, num_samples, num_steps, seed, batch_size)
    least = threshold if threshold is not None else (share or 0.0) * unrelated
    return Chosen(first_time(times, d, least), least, times, d, unrelated, num_samples, features)


def first_time(times: list[int], distances: list[float], threshold: float) -> int:
    """Return the first of the rising times at which the distance reaches the threshold.

    Raises:
        ValueError: If the distance never reaches the threshold.

    Example:
        >>> first_time([0, 250, 500, 750], [0.0, 0.1, 0.3, 0.2], 0.275)
        500
    """
    for t, d in zip(times, distances, strict=True):
        if d >= threshold:
            return t
    raise ValueError(
        f"The distance never reaches the threshold {threshold:.4g}: its largest value is "
        f"{max(distances):.4g}. Pass a smaller `threshold` or `share`."
    )


def curve(
    dm: DiffusionModel, distance: Distance, num_samples: int, num_steps: int, seed: int,
    batch_size: int,
) -> tuple[list[int], list[float], float]:  # fmt: skip
    """Return rising times, d(t) at each time, and the mean distance of two unrelated samples."""
    grid = time_grid(num_steps, dm.schedule.num_train_steps)
    generator = torch.Generator().manual_seed(seed)
    x_T = torch.randn(num_samples, *dm.image_shape, generator=generator)
    total = torch.zeros(num_steps, dtype=torch.float64)
    ends: list[Tensor] = []
    for part in x_T.to(next(dm.unet.parameters()).device).split(batch_size):
        predicted = [node.P for node in trajectory(dm, grid, part)]
        ends.append(predicted[-1])
        means = [distance(P, predicted[-1]).double().mean().cpu() for P in predicted]
        total += torch.stack(means) * len(part)
    x_0 = torch.cat(ends)
    pairs = zip(x_0.split(batch_size), x_0.roll(1, 0).split(batch_size), strict=True)
    unrelated = sum(distance(x, y).double().mean().item() * len(x) for x, y in pairs)
    d = (total / num_samples).flip(0).tolist()
    return list(grid[-2::-1]), d, unrelated / num_samples


def draw_curve(chosen: Chosen, path: Path, *, preset: int | None = None) -> Path:
    """Write the curve with the chosen t_stop as a picture.

    Args:
        chosen: The chosen t_stop and its curve.
        path: A ``.png`` file. It is replaced only when the new picture is complete.
        preset: A t_stop to compare with.
    """
    figure, axes = plain_axes(6.4, 3.8)
    axes.plot(chosen.times, chosen.distances, color="tab:blue", marker=".", ms=4)
    axes.axhline(chosen.threshold, color="0.5", lw=0.8, ls="--")
    axes.annotate(f"threshold {chosen.threshold:.3g}", (0, chosen.threshold), (4, 4),
                  textcoords="offset points", color="0.35", fontsize=8)  # fmt: skip
    axes.axvline(chosen.t_stop, color="tab:red", lw=1.2, label=f"chosen: t_stop = {chosen.t_stop}")
    if preset is not None:
        axes.axvline(preset, color="0.5", lw=1.2, ls=":", label=f"preset: t_stop = {preset}")
    axes.set(xlabel="time t", ylabel=r"mean distance of $P_t$ to $x_0$",
             title=f"Distance to the sample at time t, by {chosen.features['name']}")  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower right")
    return save_figure(figure, path)
