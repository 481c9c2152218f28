"""Find the noise that images come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chainograd.samplers.schedule import GridConvention
from hdiscovery.api.files import refuse_existing, refuse_own
from hdiscovery.data.images import INVERSION, listed, read_photo
from hdiscovery.directions.config import run_config
from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.directions.history import open_model
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.shipped import located
from hdiscovery.dm.device import device_of
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.open import load_dm
from hdiscovery.editing import inversion
from hdiscovery.editing.inversion import Inverted, generate, psnr, save_inversion
from hdiscovery.editing.sheets import Sheet, draw_sheet
from hdiscovery.progress import Bars, silent

Images = str | Path | Sequence[str | Path]


@dataclass(frozen=True, slots=True, eq=False)
class Inversion:
    """Images, the noise they come from, and how well they come back.

    Attributes:
        dm: The diffusion model.
        files: Where each of the N images was read.
        notes: What was done to each image to make it fit the model, in words.
        images: Image, noise and number of steps of each.
        x_T: The noise of all images, ``[N, C, H, W]``.
        num_steps: DDIM steps from the noise back to the images.
        back: The images that come back, ``[N, C, H, W]``, not clamped.
        psnr: How well each image comes back, in dB. Below 25 dB the loss is seen at a glance.
    """

    dm: DiffusionModel
    files: list[Path]
    notes: list[str]
    images: list[Inverted]
    x_T: Tensor
    num_steps: int
    back: Tensor
    psnr: list[float]

    def save(self, folder: Path, *, overwrite: bool = False) -> list[Path]:
        """Write each image's noise as ``NAME.safetensors``, and ``NAME.png`` to look at.

        Raises:
            FileExistsError: If a file is there and ``overwrite`` is false, or an image would be
                replaced.
        """
        paths = outputs(self.files, folder, overwrite=overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        for j, one in enumerate(self.images):
            save_inversion(paths[2 * j], one, self.dm)
            draw_sheet(paths[2 * j + 1], self._sheet(j))
        return paths

    def quality(self, j: int) -> str:
        """Return how well image j comes back, as one reads it."""
        return f"PSNR {self.psnr[j]:.1f} dB"

    def _sheet(self, j: int) -> Sheet:
        one = self.images[j]
        return Sheet(
            title=f"{self.files[j].name}, {one.num_steps} steps, {self.quality(j)}",
            cells=torch.stack([one.x_0, self.back[j], one.x_T / 3])[None],
            columns=("original", "reconstruction", "noise x_T / 3"),
        )


def invert(
    model: DirectionSet | str | Path,
    images: Images,
    *,
    inversion_steps: int = 100,
    sampling_steps: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    progress: Bars = silent,
) -> Inversion:
    """Find the noise that images come from, and say how well they come back from it.

    Args:
        model: Opened directions, a run, or a diffusion model: its file or a shipped one's name. A
            run brings its own time grid.
        images: Image files, folders of them, or ``.safetensors`` files of earlier inversions,
            which are taken as they are.
        inversion_steps: DDIM steps from an image to its noise. More steps make images that are
            like those the model knows come back better.
        sampling_steps: DDIM steps back, None for as many as the inversion took.
        batch_size: Images at once.
        device: Where to compute, as in :func:`open`; opened directions stay where they are.
        progress: Makes a progress bar of a name.

    Returns:
        The noise of every image and how well the image comes back.

    Raises:
        FileNotFoundError: If an image or the model is not there.
        ValueError: If a file cannot be read, a number is out of range, or the images were inverted
            in different numbers of steps and ``sampling_steps`` is None.

    Cost:
        ``inversion_steps + sampling_steps`` evaluations of the network for each image.

    Example:
        >>> import hdiscovery
        >>> found = hdiscovery.invert("MNIST32-small", photo, inversion_steps=5, device="cpu")
        >>> found.x_T.shape
        torch.Size([1, 1, 32, 32])
    """
    if batch_size < 1:
        raise ValueError(f"`--batch-size` must be at least 1, got {batch_size}.")
    files = listed([Path(path) for path in _paths(images)])
    dm, grid = _model(model, device)
    notes, inverted = _inverted(files, dm, inversion_steps, grid, batch_size, progress)
    num_steps = _steps_back(inverted, sampling_steps)
    x_T = torch.stack([one.x_T for one in inverted])
    back = torch.cat([
        generate(dm, part, num_steps=num_steps, convention=grid) for part in x_T.split(batch_size)
    ])  # fmt: skip
    quality = psnr(torch.stack([one.x_0 for one in inverted]), back)
    return Inversion(dm, files, notes, inverted, x_T, num_steps, back, quality)


def outputs(files: Sequence[Path], folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Return the files that inversions of images are written to, two for each image.

    Raises:
        FileExistsError: If one is there and ``overwrite`` is false, or it is one of the images.
    """
    paths = [folder / f"{file.stem}{end}" for file in files for end in (INVERSION, ".png")]
    refuse_own(files, paths)
    refuse_existing(paths, overwrite)
    return paths


def _paths(images: Images) -> Sequence[str | Path]:
    return [images] if isinstance(images, str | Path) else images


def _model(model: DirectionSet | str | Path, device: str) -> tuple[DiffusionModel, GridConvention]:
    if isinstance(model, DirectionSet):
        return model.dm, model.sampler.convention
    folder = located(Path(model))
    if (folder / "config.json").is_file():
        run = RunFolder(folder)
        config = run_config(run)
        return open_model(run, config, device=device_of(device)), config.sampling.grid
    return load_dm(str(model), device=device_of(device)), "asyrp"


def _inverted(
    files: Sequence[Path], dm: DiffusionModel, num_steps: int, grid: GridConvention,
    batch_size: int, progress: Bars,
) -> tuple[list[str], list[Inverted]]:  # fmt: skip
    """Return what was done to each image, and each image with its noise."""
    device, notes, found, photos = next(dm.unet.parameters()).device, {}, {}, []
    for file in files:
        if file.suffix == INVERSION:
            found[file] = inversion.load_inversion(file, dm)
            notes[file] = f"inverted before, in {found[file].num_steps} steps"
        else:
            photo = read_photo(file, dm.image_shape)
            notes[file] = photo.changes or "taken as it is"
            photos.append((file, photo.x))
    for start in progress("inversion")(range(0, len(photos), batch_size)):
        batch = photos[start : start + batch_size]
        x_0 = torch.stack([x for _, x in batch]).to(device)
        x_T = inversion.invert(dm, x_0, num_steps=num_steps, convention=grid)
        for (file, _), image, noise in zip(batch, x_0, x_T, strict=True):
            found[file] = Inverted(image, noise, num_steps)
    return [notes[file] for file in files], [found[file] for file in files]


def _steps_back(inverted: Sequence[Inverted], asked: int | None) -> int:
    taken = sorted({one.num_steps for one in inverted})
    if asked is None and len(taken) > 1:
        raise ValueError(
            f"The images were inverted in different numbers of steps, {taken}. Take one group at a "
            "time, or set the steps back by `--sampling-steps`."
        )
    return taken[0] if asked is None else asked
