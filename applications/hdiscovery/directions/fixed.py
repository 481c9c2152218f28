"""Directions without a shift block: a mean for each step, or one mean over all steps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MeanDirections(nn.Module):
    """dh = the mean direction at the stored time nearest to t, whatever h is.

    Args:
        mean: ``[K, T_s, C, H, W]``, any floating dtype.
        times: The T_s times they were measured at; of two equally near ones the earlier in this
            sequence is taken.

    Raises:
        ValueError: If there is not one time a step.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, times: Sequence[int]) -> None:
        super().__init__()
        if not times or mean.ndim != 5 or mean.shape[1] != len(times):
            raise ValueError(
                f"`mean` must be [K, T_s, C, H, W] with one step for each of the {len(times)} "
                f"`times`, got {list(mean.shape)}."
            )
        self.times = tuple(times)
        self.register_buffer("mean", mean)

    def forward(self, h: Tensor, embedding: Tensor, k: Tensor, t: int) -> Tensor:
        """Return dh of ``k[n]`` for each sample, ``[N, C, H, W]`` in h's dtype."""
        i = min(range(len(self.times)), key=lambda i: abs(self.times[i] - t))
        return self.mean[k, i].to(h.dtype)


class GlobalDirections(nn.Module):
    """dh = one direction for all times and all h.

    Args:
        global_: ``[K, C, H, W]``, any floating dtype.
    """

    global_: Tensor

    def __init__(self, global_: Tensor) -> None:
        super().__init__()
        if global_.ndim != 4:
            raise ValueError(f"`global_` must be [K, C, H, W], got {list(global_.shape)}.")
        self.register_buffer("global_", global_)

    def forward(self, h: Tensor, embedding: Tensor, k: Tensor, t: int) -> Tensor:
        """Return dh of ``k[n]`` for each sample, ``[N, C, H, W]`` in h's dtype."""
        return self.global_[k].to(h.dtype)
