"""Probes: functions that measure one property of an image, which a direction may change.

The probes of digits read a grey image as ink on paper: -1 is paper, 1 is ink. Lengths are in
pixels. The mask of inked pixels (above 0) is computed at twice the resolution, so lengths are
exact to half a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Probe = Callable[[Tensor], Tensor]


def probes_for(image_shape: tuple[int, int, int]) -> dict[str, Probe]:
    """Return the probes for grey or coloured images, by name.

    Args:
        image_shape: ``(C, H, W)``.

    Returns:
        Functions from images ``[N, C, H, W]`` in [-1, 1] to ``[N]``.
    """
    if image_shape[0] == 1:
        return {"thickness": thickness, "slant": slant, "width": width, "size": size}
    return {"brightness": brightness, "contrast": contrast, "colourfulness": colourfulness}


def thickness(images: Tensor) -> Tensor:
    """Return the mean width of the strokes, in pixels; 0 if there is no ink.

    The width is twice the distance to the paper, averaged over the ridge of that distance.
    """
    inked = _mask(images)
    distance = distance_transform(inked)  # in half pixels; on a ridge this is the width in pixels
    padded = F.max_pool2d(distance[:, None], 3, stride=1, padding=1)[:, 0]
    ridge = (inked & (distance >= padded)).flatten(1)
    return (distance.flatten(1) * ridge).sum(1) / ridge.sum(1).clamp_min(1)


def slant(images: Tensor) -> Tensor:
    """Return the slant of the ink in degrees; a positive slant leans to the right.

    tan(slant) is the ink's shear, mu_11 / mu_02 with y upwards (the moments of Morpho-MNIST). The
    slant is 0 if there is no ink.

    References:
        Castro et al. (2019), Morpho-MNIST.
    """
    ink = (images[:, 0].clamp(-1, 1) + 1) / 2
    total = ink.sum((1, 2)).clamp_min(1e-6)
    y = torch.arange(ink.shape[1], device=ink.device, dtype=ink.dtype).flip(0)[None, :, None]
    x = torch.arange(ink.shape[2], device=ink.device, dtype=ink.dtype)[None, None]
    x = x - ((ink * x).sum((1, 2)) / total)[:, None, None]
    y = y - ((ink * y).sum((1, 2)) / total)[:, None, None]
    mu_11, mu_02 = (ink * x * y).sum((1, 2)), (ink * y * y).sum((1, 2))
    return torch.rad2deg(torch.atan(mu_11 / mu_02.clamp_min(1e-6)))


def width(images: Tensor) -> Tensor:
    """Return the width of the box around the ink, in pixels; 0 if there is no ink."""
    return _extent(_mask(images).any(1))


def size(images: Tensor) -> Tensor:
    """Return the square root of the area of the box around the ink, in pixels."""
    mask = _mask(images)
    return (_extent(mask.any(1)) * _extent(mask.any(2))).sqrt()


def brightness(images: Tensor) -> Tensor:
    """Return the mean over pixels and channels, in [-1, 1]."""
    return images.clamp(-1, 1).flatten(1).mean(1)


def contrast(images: Tensor) -> Tensor:
    """Return the standard deviation of the grey image."""
    return images.clamp(-1, 1).mean(1).flatten(1).std(1, correction=0)


def colourfulness(images: Tensor) -> Tensor:
    """Return the standard deviation over channels, averaged over pixels."""
    return images.clamp(-1, 1).std(1, correction=0).flatten(1).mean(1)


def distance_transform(mask: Tensor) -> Tensor:
    """Return the exact distance of each true pixel to the nearest false pixel; 0 for false pixels.

    Args:
        mask: ``[N, H, W]`` bool. Pixels beyond the border count as false.

    Returns:
        ``[N, H, W]``, float32, in pixels.

    Example:
        >>> distance_transform(torch.tensor([[[False, True, True, True, True]]])).tolist()
        [[[0.0, 1.0, 1.0, 1.0, 1.0]]]
    """
    padded = F.pad(mask, (1, 1, 1, 1))
    _, H, W = padded.shape
    far = float(4 * (H + W) ** 2)
    parts = []
    for part in padded.split(max(1, 2**24 // (H * W * max(H, W)))):  # 64 MiB at once
        along_x = _lower_envelope(torch.where(part, far, 0.0))
        parts.append(_lower_envelope(along_x.mT).mT)
    return torch.cat(parts)[:, 1:-1, 1:-1].sqrt()


def _lower_envelope(f: Tensor) -> Tensor:
    """Return min_j f(j) + (i - j)^2 along the last dimension."""
    i = torch.arange(f.shape[-1], device=f.device, dtype=torch.float32)
    return (f[..., None, :] + (i[:, None] - i[None]).square()).amin(-1)


def _mask(images: Tensor) -> Tensor:
    finer = F.interpolate(images.float(), scale_factor=2.0, mode="bilinear")
    return finer[:, 0] > 0


def _extent(inked: Tensor) -> Tensor:
    """Return the length from first to last true entry of ``[N, L]``, in half entries."""
    i = torch.arange(inked.shape[1], device=inked.device, dtype=torch.float32)
    last = torch.where(inked, i, -math.inf).amax(1)
    first = torch.where(inked, i, math.inf).amin(1)
    return torch.where(inked.any(1), (last - first + 1) / 2, 0.0)
