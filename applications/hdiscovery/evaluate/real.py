"""Real images that samples are compared with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hdiscovery.data.mnist import load_mnist

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def real_images(
    data: Path, image_shape: tuple[int, int, int], count: int, *, seed: int = 1
) -> tuple[Tensor, str]:
    """Return real images drawn at random from a folder, and a description of their source.

    Args:
        data: A folder with ``MNIST/raw`` or with image files at any depth. From MNIST the 10,000
            test images are taken, which neither the model nor the classifier of digits has seen.
            Files are scaled so that the short edge fits, and cropped in the middle.
        image_shape: ``(C, H, W)`` of the result, C = 1 or 3.
        count: Largest number of images.
        seed: Seed of the choice.

    Returns:
        ``[N, C, H, W]`` in [-1, 1] and a line for the report.

    Raises:
        FileNotFoundError: If the folder holds neither MNIST nor image files.
        ValueError: If the images do not fit ``image_shape`` or cannot be read.
    """
    channels, height, width = image_shape
    generator = torch.Generator().manual_seed(seed)
    if (data / "MNIST" / "raw").is_dir():
        if channels != 1:
            raise ValueError(
                f"`data` {data} holds MNIST, which is grey, and the model makes images of shape "
                f"{image_shape}. Name a folder of images like the model's."
            )
        images, _ = load_mnist(data, train=False, image_size=height, download=False)
        chosen = torch.randperm(len(images), generator=generator)[:count]
        return images[chosen], f"MNIST, test images, resized to {height}"
    files = sorted(p for p in data.rglob("*") if p.suffix.lower() in ENDINGS)
    if not files:
        raise FileNotFoundError(
            f"`data` {data} holds neither MNIST/raw nor image files ({', '.join(ENDINGS)})."
        )
    chosen = torch.randperm(len(files), generator=generator)[:count].tolist()
    images = torch.stack([_read(files[i], channels, height, width) for i in chosen])
    return images, f"{len(files)} image files of {data.name}, resized to {height}x{width}"


def _read(path: Path, channels: int, height: int, width: int) -> Tensor:
    from PIL import Image, ImageOps, UnidentifiedImageError
    from torchvision.transforms.functional import pil_to_tensor

    try:
        with Image.open(path) as file:
            image = file.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}.") from error
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return pil_to_tensor(image).float() / 127.5 - 1
