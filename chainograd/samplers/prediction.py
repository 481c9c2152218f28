"""The arguments of a network, and the clean data that follows from its predicted noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def per_sample(x: Tensor, value: int | float) -> Tensor:
    """Return a time or noise level once for each sample, as networks take it.

    Args:
        x: State, ``[N, ...]``.
        value: An integer becomes int64. A float gets the dtype of ``x``, but at least float32,
            because bfloat16 rounds a time of 0.999 to 1.

    Returns:
        ``[N]``, on the device of ``x``.
    """
    is_index = isinstance(value, int)
    dtype = torch.int64 if is_index else torch.promote_types(x.dtype, torch.float32)
    return x.new_full((len(x),), value, dtype=dtype)


def predicted_data(
    x_t: Tensor, epsilon: Tensor, *, alpha_bar_t: float, clamp: float | None = None
) -> Tensor:
    """Return the clean data that follows from the predicted noise.

        P = (x_t - sqrt(1 - alpha_bar_t) epsilon) / sqrt(alpha_bar_t)

    Args:
        x_t: State at time t.
        epsilon: Predicted noise at ``x_t``.
        alpha_bar_t: alpha-bar at time t.
        clamp: Bound for ``|P|``; the gradient through clamped entries is 0. None means no clamp.
    """
    P = (x_t - math.sqrt(1 - alpha_bar_t) * epsilon.to(x_t.dtype)) / math.sqrt(alpha_bar_t)
    return P if clamp is None else P.clamp(-clamp, clamp)
