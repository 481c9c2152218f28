"""The distance that the paper compares its discriminator with."""

from __future__ import annotations

from torch import Tensor


def weighted_l1(x_0: Tensor, shifted: Tensor, s: Tensor, *, gamma: float) -> Tensor:
    """Return ``gamma / (gamma + |s|) |x~_0 - x_0|_1``, averaged over pixels and the batch.

    Section 5.6: images should stay near where they were, less so for larger shifts.
    """
    distance = (shifted - x_0).abs().flatten(1).mean(1)
    return (gamma / (gamma + s.abs()) * distance).mean()
