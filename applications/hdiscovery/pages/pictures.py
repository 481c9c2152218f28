"""The two pictures of a direction: a sheet of all its images, and an animation."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

EXACT_UP_TO = 64  # pixels of an edge; larger images are photographs and are compressed with loss
LARGEST = 16383  # pixels of an edge, WebP's limit
PER_ROW = 6  # samples side by side in an animation
ANIMATED_EDGE = 96  # smaller samples are enlarged to about this many pixels in an animation
FRAME_MS = 120


def sheet(strips: Tensor) -> bytes:
    """Return all images of a direction as one WebP; rows are samples, columns are shifts.

    Images up to 64 pixels are stored without loss, larger images with quality 90.

    Args:
        strips: ``[num_samples, num_shifts, C, H, W]`` in [-1, 1], floating point, C = 1 or 3.
            Values outside are clamped; NaN is drawn as 0, mid-grey.

    Raises:
        ValueError: If ``strips`` has another shape or dtype, or is too large for a WebP.
    """
    images = _bytes(strips)
    N, n, H, W, C = images.shape
    if max(N * H, n * W) > LARGEST:
        raise ValueError(
            f"A sheet of {N} samples and {n} shifts of {H} x {W} pixels is larger than WebP's "
            f"{LARGEST} pixels an edge. Draw fewer samples or shifts."
        )
    pixels = images.transpose(0, 2, 1, 3, 4).reshape(N * H, n * W, C)
    exact = max(H, W) <= EXACT_UP_TO
    return _webp(_image(pixels), **({"lossless": True} if exact else {"quality": 90}))


def animation(strips: Tensor) -> bytes:
    """Return a direction as an animated WebP: all samples at once, from -S to S and back.

    Args:
        strips: As for :func:`sheet`.

    Raises:
        ValueError: If ``strips`` has another shape or dtype.
    """
    images = _bytes(strips)
    there = list(range(images.shape[1]))
    frames = [_frame(images[:, j]) for j in there + there[-2:0:-1]]
    moving = {"save_all": True, "append_images": frames[1:], "duration": FRAME_MS, "loop": 0}
    return _webp(frames[0], quality=75, **moving)


def _bytes(strips: Tensor) -> NDArray[np.uint8]:
    """Return ``[num_samples, num_shifts, H, W, C]`` in 0 … 255."""
    shape = tuple(strips.shape)
    if len(shape) != 5 or 0 in shape or shape[2] not in (1, 3):
        raise ValueError(
            "`strips` must be [num_samples, num_shifts, C, H, W] with C = 1 or 3, got "
            f"{list(shape)}. A single strip is `strips[None]`."
        )
    if not strips.is_floating_point():
        raise ValueError(
            f"`strips` must be floating point in [-1, 1], got {strips.dtype}. Convert bytes with "
            "`strips / 127.5 - 1`."
        )
    images = strips.detach().cpu().float().nan_to_num(nan=0.0, posinf=1.0, neginf=-1.0)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round()
    return pixels.permute(0, 1, 3, 4, 2).numpy().astype(np.uint8)


def _frame(images: NDArray[np.uint8]) -> Image.Image:
    """Return ``[num_samples, H, W, C]`` in rows of `PER_ROW`, two pixels apart."""
    N, H, W, C = images.shape
    zoom = max(1, ANIMATED_EDGE // max(H, W))
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    H, W, gap, across = zoom * H, zoom * W, 2, min(N, PER_ROW)
    down = -(-N // across)
    frame = np.full((down * (H + gap) - gap, across * (W + gap) - gap, C), 128, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // across * (H + gap), i % across * (W + gap)
        frame[top : top + H, left : left + W] = image
    return _image(frame)


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _webp(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format="WEBP", **options)
    return file.getvalue()
