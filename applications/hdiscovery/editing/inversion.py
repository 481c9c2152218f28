"""DDIM inversion: find the x_T of an image, and measure how well x_T reproduces the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from chainograd.samplers import DDIM, time_grid
from chainograd.samplers.schedule import GridConvention
from hdiscovery.directions.fingerprint import dm_hash
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.tensors import save_tensors

FORMAT = "hdiscovery-inversion-1"
LOW_PSNR = 25.0  # dB; below it, the differences from the image are visible at a glance


@dataclass(frozen=True, slots=True, eq=False)
class Inverted:
    """An image and the noise that reproduces it.

    Attributes:
        x_0: The image, ``[C, H, W]`` in [-1, 1].
        x_T: Its noise, ``[C, H, W]``.
        num_steps: DDIM steps of the inversion.
    """

    x_0: Tensor
    x_T: Tensor
    num_steps: int


def invert(
    dm: DiffusionModel, x_0: Tensor, *, num_steps: int = 100, convention: GridConvention = "asyrp"
) -> Tensor:
    """Return the x_T of images by running deterministic DDIM backwards, without a graph.

    Inversion is the sampler's formula on the reversed grid. Each step uses the noise predicted at
    the state it leaves, where exact inversion would need the state it reaches. Sampling from the
    result therefore misses the image by O(1/num_steps). Nothing is clamped.

    Args:
        dm: The diffusion model.
        x_0: Images at the grid's end, ``[N, C, H, W]`` in [-1, 1], on the model's device.
        num_steps: DDIM steps; each evaluates the network once.
        convention: Convention of the time grid: ``"asyrp"`` starts from alpha_bar = 1,
            ``"author"`` from time 0.

    Returns:
        ``[N, C, H, W]``.

    Raises:
        ValueError: If ``num_steps`` does not fit the schedule.

    References:
        Song et al. (2020), Denoising Diffusion Implicit Models, section 4.3.
    """
    grid = time_grid(num_steps, dm.schedule.num_train_steps, convention=convention)
    return _walk(dm, x_0, grid[::-1])


def generate(
    dm: DiffusionModel, x_T: Tensor, *, num_steps: int = 100, convention: GridConvention = "asyrp"
) -> Tensor:
    """Return the images ``[N, C, H, W]`` that DDIM samples from x_T, unclamped, without a graph."""
    return _walk(dm, x_T, time_grid(num_steps, dm.schedule.num_train_steps, convention=convention))


def _walk(dm: DiffusionModel, x: Tensor, grid: tuple[int, ...]) -> Tensor:
    C = dm.image_shape[0]
    step = DDIM(lambda x, t: dm.unet(x, t)[:, :C], dm.schedule, grid)
    with torch.no_grad():
        for i in range(step.num_steps):
            x = step(x, i)
    return x


def psnr(images: Tensor, others: Tensor) -> list[float]:
    """Return the peak signal-to-noise ratio of each pair in dB; inf for equal images.

        PSNR = 10 log10(2^2 / mean (a - b)^2),     a, b clamped to [-1, 1]

    Args:
        images: ``[N, C, H, W]``, from -1 (black) to 1 (white).
        others: Images of the same shape.

    Example:
        >>> grey, lighter = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.2)
        >>> round(psnr(grey, lighter)[0], 2)
        20.0
    """
    errors = (images.clamp(-1, 1) - others.clamp(-1, 1)).square().flatten(1).mean(1)
    return [10 * math.log10(4 / e) if e else math.inf for e in errors.double().tolist()]


def save_inversion(path: Path, inverted: Inverted, dm: DiffusionModel) -> None:
    """Write an inversion as safetensors; an old file is replaced only by a complete new one."""
    metadata = {"format": FORMAT, "num_steps": str(inverted.num_steps), "dm_hash": dm_hash(dm)}
    tensors = {"x_0": inverted.x_0.cpu(), "x_T": inverted.x_T.cpu()}
    save_tensors(path, tensors, metadata=metadata)


def load_inversion(path: Path, dm: DiffusionModel) -> Inverted:
    """Read a file of `save_inversion`, onto the model's device.

    Raises:
        ValueError: If the file is not an inverted image, or was inverted with another model.
    """
    try:
        inverted, hash_ = _read(path, next(dm.unet.parameters()).device)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not an inverted image: {error}.") from error
    if hash_ != dm_hash(dm):
        raise ValueError(
            f"{path} was inverted with another diffusion model than {dm.name}, which makes a "
            "different image of its noise. Invert the original image again."
        )
    return inverted


def _read(path: Path, device: torch.device) -> tuple[Inverted, str | None]:
    """Return an inversion and the hash of the diffusion model that made it."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"its format is {metadata.get('format')!r}, expected {FORMAT!r}, which "
                "`hdiscovery invert` writes"
            )
        x_0, x_T = (file.get_tensor(name).to(device) for name in ("x_0", "x_T"))
    return Inverted(x_0, x_T, int(metadata["num_steps"])), metadata.get("dm_hash")
