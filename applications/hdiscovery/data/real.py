"""Real images that samples are compared with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hdiscovery.data.images import SUFFIXES, read_photo
from hdiscovery.data.mnist import load_mnist


def real_images(
    data: Path, image_shape: tuple[int, int, int], count: int, *, seed: int = 1
) -> tuple[Tensor, str]:
    """Return real images drawn at random from a folder, and what they are.

    Args:
        data: A folder that holds ``MNIST/raw`` or, at any depth, image files. Of MNIST the 10,000
            test images are taken: neither the diffusion model nor the classifier of digits has
            seen them. Image files are read by :func:`~hdiscovery.data.images.read_photo`.
        image_shape: ``(C, H, W)`` of the result, C = 1 or 3.
        count: The largest number of images. A folder with fewer images returns all of them.
        seed: Which images are drawn.

    Returns:
        ``[N, C, H, W]`` in [-1, 1] and a line for the report.

    Raises:
        FileNotFoundError: If the folder holds neither MNIST nor image files.
        ValueError: If a file cannot be read, or the model's images are not grey and the folder
            holds MNIST.
    """
    generator = torch.Generator().manual_seed(seed)
    if (data / "MNIST" / "raw").is_dir():
        return _of_mnist(data, image_shape, count, generator)
    files = sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"`data` {data} holds neither MNIST/raw nor image files ({', '.join(SUFFIXES)})."
        )
    chosen = torch.randperm(len(files), generator=generator)[:count].tolist()
    images = torch.stack([read_photo(files[i], image_shape).x for i in chosen])
    _, height, width = image_shape
    return images, f"{len(files)} image files of {data.name}, resized to {height}x{width}"


def _of_mnist(
    data: Path, image_shape: tuple[int, int, int], count: int, generator: torch.Generator
) -> tuple[Tensor, str]:
    channels, height, _ = image_shape
    if channels != 1:
        raise ValueError(
            f"`data` {data} is MNIST, whose images are grey, and the model makes images of shape "
            f"{image_shape}. Pass a folder of images like those that the model was trained on."
        )
    images, _ = load_mnist(data, train=False, image_size=height, download=False)
    chosen = torch.randperm(len(images), generator=generator)[:count]
    return images[chosen], f"MNIST, test images, resized to {height}"
