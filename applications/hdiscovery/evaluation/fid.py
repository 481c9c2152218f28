"""FID to real images of raw and of shifted samples, both made from the same x_T."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hdiscovery.directions.pairs import Pair
from hdiscovery.evaluation.features import FeatureNet


@dataclass(frozen=True, slots=True)
class FIDReport:
    """FIDs to real images. FIDs from different feature nets are not comparable.

    Attributes:
        raw: FID of unshifted samples.
        shifted: FID of the same samples, each shifted by a random k and s.
        images: Number of raw samples, and of shifted samples.
        real_images: Number of real images.
        real: Source of the real images.
        features: Name and hash of the feature net.
    """

    raw: float
    shifted: float
    images: int
    real_images: int
    real: str
    features: dict[str, Any]


def measure_fid(
    drawn: Iterable[Pair], net: FeatureNet, real: Tensor, *, source: str, batch_size: int = 64
) -> FIDReport:
    """Return the FIDs of a subject's raw and shifted samples.

    The statistics are gathered in float64, batch by batch. FID grows as the number of images
    falls, and strongly so below the number of features: compare FIDs only at the same number.

    Args:
        drawn: Batches of pairs, at least 2 pairs in total.
        net: The feature net.
        real: ``[N, C, H, W]`` in [-1, 1].
        source: Source of ``real``, for the report.
        batch_size: Real images at once.

    Raises:
        ValueError: If there are fewer than 2 samples or real images.
    """
    raw, shifted = (distance_to(net, real.split(batch_size)) for _ in range(2))
    images = 0
    for x_0, x_0_shifted, _, _ in drawn:
        raw.update(x_0, real=False)
        shifted.update(x_0_shifted, real=False)
        images += len(x_0)
    if images < 2 or len(real) < 2:
        raise ValueError(
            f"FID needs at least 2 `images` and 2 real images, got {images} and {len(real)}."
        )
    return FIDReport(
        raw=raw.compute().item(),
        shifted=shifted.compute().item(),
        images=images,
        real_images=len(real),
        real=source,
        features=net.described(),
    )


def distance_to(net: FeatureNet, real: Iterable[Tensor]) -> Any:
    """Return torchmetrics' FID, fed with the real images; ``update`` adds the samples."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    metric = FrechetInceptionDistance(net, normalize=True).to(device)
    for part in real:
        metric.update(part.to(device), real=True)
    return metric
