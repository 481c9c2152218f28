"""Photos as tensors that a diffusion model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
INVERSION = ".safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """An image that was read.

    Attributes:
        name: Of its file, without folder and suffix.
        x: ``[C, H, W]`` in [-1, 1].
        changes: What was done to it, in words; empty where nothing was.
    """

    name: str
    x: Tensor
    changes: str


def listed(paths: Sequence[Path]) -> list[Path]:
    """Return the files among paths and in the folders among them, sorted within a folder.

    Args:
        paths: Files, taken as they are, and folders. Of a folder that `hdiscovery invert` wrote
            the inversions are taken and not the pictures of them, else all images.

    Raises:
        FileNotFoundError: If a path is not there or a folder has no such file.
        ValueError: If two files have the same stem, since results are named after it.
    """
    files = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.iterdir())
            found = [file for file in inside if file.suffix == INVERSION]
            found = found or [file for file in inside if file.suffix.lower() in SUFFIXES]
            if not found:
                raise FileNotFoundError(f"`image` {path} holds no {', '.join(SUFFIXES)}.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"`image` {path} is neither a file nor a folder.")
    named: dict[str, Path] = {}
    for file in files:
        if named.setdefault(file.stem, file) is not file:
            raise ValueError(
                f"`image` {named[file.stem]} and {file} would give results of the same name. Edit "
                "them one after the other, with another `--out`."
            )
    return files


def read_photo(path: Path, shape: tuple[int, int, int]) -> Photo:
    """Read an image file, made to fit a diffusion model.

    It is turned as its EXIF says, laid on white where it is transparent, made grey or RGB, cut to
    the model's proportions around its centre, and resized by antialiased bilinear interpolation,
    as the paper's first author does with training images.

    Args:
        path: The file, of any kind that Pillow reads.
        shape: ``(C, H, W)``, C = 1 or 3.

    Raises:
        ValueError: If it is no image, or the model's data are no images.
    """
    C, H, W = shape
    if C not in (1, 3):
        raise ValueError(
            f"This model's data have {C} channels; only grey images (1) and RGB (3) can be read "
            "from files."
        )
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"`image` {path} cannot be read as an image: {error}.") from error
    changes = []
    image = _eight_bits(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        changes.append("laid on white")
    mode = "L" if C == 1 else "RGB"
    if image.mode != mode:
        if (image.mode == "L") != (mode == "L"):
            changes.append("made grey" if mode == "L" else "made RGB")
        image = image.convert(mode)
    edge = (W, H)
    if image.size[0] * H != image.size[1] * W:
        changes.append("cut around the centre")
    if image.size != edge:
        changes.append(f"{image.size[0]} x {image.size[1]} resized to {W} x {H}")
        image = ImageOps.fit(image, edge, Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    x = pixels.view(H, W, C).permute(2, 0, 1).float() / 127.5 - 1
    return Photo(path.stem, x.contiguous(), ", ".join(changes))


def to_image(x: Tensor) -> Image.Image:
    """Return ``[C, H, W]`` in [-1, 1] as a grey or RGB image; what lies outside is clamped."""
    pixels = ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def save_image(x: Tensor, path: Path) -> Path:
    """Write ``[C, H, W]`` in [-1, 1] as PNG, complete or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    to_image(x).save(partial, format="PNG")
    return partial.replace(path)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit grey scaled to 8 bits, which Pillow would cut off; others as they are."""
    if not image.mode.startswith("I"):
        return image
    return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
