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
        name: Name of the file, without folder and suffix.
        x: ``[C, H, W]`` in [-1, 1].
        changes: What was done to make the image fit, in words; empty if it fitted.
    """

    name: str
    x: Tensor
    changes: str


def listed(paths: Sequence[Path]) -> list[Path]:
    """Return the files among paths and in the folders among them, sorted within a folder.

    Args:
        paths: Files, taken as they are, and folders. From a folder that `hdiscovery invert` wrote,
            the inversions are taken; from any other folder, all images.

    Raises:
        FileNotFoundError: If a path is not there, or a folder holds no such file.
        ValueError: If two files have the same stem, since results are named after the stem.
    """
    files = [file for path in paths for file in _inside(path)]
    named: dict[str, Path] = {}
    for file in files:
        if named.setdefault(file.stem, file) is not file:
            raise ValueError(
                f"`image` {named[file.stem]} and {file} would give results of the same name. Edit "
                "them one after the other, with another `--out`."
            )
    return files


def _inside(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"`image` {path} is neither a file nor a folder.")
    inside = sorted(path.iterdir())
    found = [file for file in inside if file.suffix == INVERSION]
    found = found or [file for file in inside if file.suffix.lower() in SUFFIXES]
    if not found:
        raise FileNotFoundError(f"`image` {path} holds no {', '.join(SUFFIXES)}.")
    return found


def read_photo(path: Path, shape: tuple[int, int, int]) -> Photo:
    """Read an image file and make it fit a diffusion model.

    The image is turned as its EXIF data say, laid on white where it is transparent, made grey or
    RGB, cut to the model's proportions around its centre, and resized by antialiased bilinear
    interpolation, as the paper's first author does with training images.

    Args:
        path: The file, of any kind that Pillow reads.
        shape: ``(C, H, W)``, C = 1 or 3.

    Raises:
        ValueError: If the file is not an image, or the model's data have another number of
            channels.
    """
    C, H, W = shape
    if C not in (1, 3):
        raise ValueError(
            f"This model's data have {C} channels; only grey images (1) and RGB (3) can be read "
            "from files."
        )
    image, laid = _on_white(_eight_bits(_opened(path)))
    image, made = _with_channels(image, C)
    image, fitted = _fitted(image, W, H)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    x = pixels.view(H, W, C).permute(2, 0, 1).float() / 127.5 - 1
    return Photo(path.stem, x.contiguous(), ", ".join([*laid, *made, *fitted]))


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            file.load()
            return ImageOps.exif_transpose(file)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"`image` {path} cannot be read as an image: {error}.") from error


def _on_white(image: Image.Image) -> tuple[Image.Image, list[str]]:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image, []
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image), ["laid on white"]


def _with_channels(image: Image.Image, C: int) -> tuple[Image.Image, list[str]]:
    mode = "L" if C == 1 else "RGB"
    changed = (image.mode == "L") != (mode == "L")
    return image.convert(mode), [f"made {'grey' if mode == 'L' else 'RGB'}"] * changed


def _fitted(image: Image.Image, W: int, H: int) -> tuple[Image.Image, list[str]]:
    changes = []
    if image.size[0] * H != image.size[1] * W:
        changes.append("cut around the centre")
    if image.size == (W, H):
        return image, changes
    changes.append(f"{image.size[0]} x {image.size[1]} resized to {W} x {H}")
    return ImageOps.fit(image, (W, H), Image.Resampling.BILINEAR), changes


def to_image(x: Tensor) -> Image.Image:
    """Return ``[C, H, W]`` in [-1, 1] as a grey or RGB image; values outside are clamped."""
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
