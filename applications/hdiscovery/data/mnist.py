"""MNIST as tensors in [-1, 1], at the size that the diffusion model works at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def load_mnist(
    root: Path, *, train: bool = True, image_size: int = 32, download: bool = True
) -> tuple[Tensor, Tensor]:
    """Return MNIST, resized as the paper's first author does (28 -> 32 by interpolation).

    Args:
        root: Folder that holds torchvision's ``MNIST/raw``. If MNIST is not there and
            ``download`` is true, it is downloaded.
        train: The 60,000 training images, or the 10,000 test images.
        image_size: Edge of the result in pixels.
        download: Whether a missing data set may be fetched.

    Returns:
        Images ``[N, 1, image_size, image_size]`` in [-1, 1], float32, and labels ``[N]``.

    Raises:
        FileNotFoundError: If the data set is not there and could not be fetched.
    """
    mnist = _found(root, train, download)
    x = mnist.data[:, None].float() / 255
    if image_size != x.shape[-1]:
        x = torch.cat(
            [
                F.interpolate(part, size=image_size, mode="bilinear", antialias=True)
                for part in x.split(4096)
            ]
        )
    return x * 2 - 1, mnist.targets


def _found(root: Path, train: bool, download: bool) -> Any:
    from torchvision.datasets import MNIST

    try:
        return MNIST(str(root), train=train)
    except RuntimeError as missing:
        if not download:
            raise FileNotFoundError(f"`data` {root} holds no MNIST/raw folder.") from missing
    try:
        return MNIST(str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"`data` {root} holds no MNIST/raw folder, and MNIST could not be downloaded "
            f"({error}). Pass `--data DIR` with a folder that holds MNIST/raw."
        ) from error
