"""Mean and global directions: averages over samples and steps, section 5.4 of the paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hdiscovery.directions.step import ShiftFunction
from hdiscovery.directions.times import shifted_times
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.walk import bottlenecks

Progress = Callable[[Iterable], Iterable]


class Means(NamedTuple):
    """Mean and global directions.

    Attributes:
        mean: ``[K, T_s, C, H, W]``, one for each direction and each of T_s shifted steps.
        global_: ``[K, C, H, W]``, the mean over the shifted steps.
        times: Times of the shifted steps.
    """

    mean: Tensor
    global_: Tensor
    times: tuple[int, ...]


def measure_means(
    dm: DiffusionModel,
    f: ShiftFunction,
    x_T: Tensor,
    grid: Sequence[int],
    *,
    K: int,
    t_stop: int,
    dtype: torch.dtype = torch.float16,
    progress: Progress = iter,
) -> Means:
    """Return the mean directions over samples, with h from each sample's unshifted trajectory.

        mean[k, t] = 1/n sum_n f_t(h_t(x_T[n]), k)          global[k] = 1/T_s sum_t mean[k, t]

    Holds K T_s tensors of h's shape in ``dtype`` on the CPU, and evaluates f for K n T_s shifts.

    Args:
        dm: The diffusion model.
        f: The directions, a function from h, embedding, k and t to dh.
        x_T: Noise of the n samples, ``[n, C, H, W]``; the paper takes 20.
        grid: Times as from `time_grid`.
        K: Number of directions.
        t_stop: Last time (inclusive) at which samples are shifted.
        dtype: Dtype of the result; sums are in float32 or wider.
        progress: Wraps the loop over steps, as ``tqdm`` does.

    Raises:
        ValueError: If no step is shifted, or a mean does not fit into ``dtype``.
    """
    times = shifted_times(grid, t_stop)
    mean = torch.empty(K, len(times), *dm.unet.h_shape, dtype=dtype)
    total = torch.zeros(K, *dm.unet.h_shape, dtype=torch.promote_types(x_T.dtype, torch.float32))
    for i, (t, h, embedding) in enumerate(progress(bottlenecks(dm, x_T, grid, t_stop=t_stop))):
        for k in range(K):
            with torch.no_grad():
                dh = f(h, embedding, torch.full((len(h),), k, device=h.device), t)
            of_samples = dh.mean(0).cpu().to(total.dtype)
            mean[k, i] = _stored(of_samples, dtype, f"direction {k} at t = {t}")
            total[k] += of_samples
    return Means(mean, _stored(total / len(times), dtype, "a global direction"), times)


def _stored(value: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """Return the value in ``dtype``, if its relative error there is at most 0.01."""
    stored = value.to(dtype)
    if not (stored.to(value.dtype) - value).norm() <= 0.01 * value.norm():
        raise ValueError(
            f"`dtype` {dtype} cannot represent {what}: its largest entry is "
            f"{value.abs().max():.3g}. Use float32."
        )
    return stored
