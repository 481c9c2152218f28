"""Find the noise that images come from."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from chainograd.samplers.schedule import GridConvention
    from hdiscovery.dm.files import DiffusionModel
    from hdiscovery.editing.inversion import Inverted

HELP = "find the noise that images come from"
EXAMPLES = (
    "hdiscovery invert MNIST32-small --image digit.png",
    "hdiscovery invert runs/a --image photos/ --steps 250 --out inverted",
    "hdiscovery edit runs/a --image inverted/digit.safetensors --direction 3",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "model", metavar="MODEL",
        help="weight file or shipped diffusion model, or a run's folder: its model and time grid",
    )  # fmt: skip
    add_image_options(parser)
    parser.add_argument("--out", type=Path, default=Path("inverted"))
    add_common_options(parser)


def add_image_options(parser: ArgumentParser, *, required: bool = True) -> None:
    """Declare which images are inverted, and how."""
    parser.add_argument(
        "--image", type=Path, nargs="+", action="extend", required=required, metavar="PATH",
        help="image files, folders of them, or .safetensors files that `invert` wrote",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=int, default=100, help="DDIM steps of the inversion, 100 by default"
    )


def add_common_options(parser: ArgumentParser) -> None:
    """Declare where to compute, and whether files may be replaced."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def run(options: Namespace) -> None:
    """Invert, and say how well the images come back."""
    from hdiscovery.data.images import listed
    from hdiscovery.directions.config import run_config
    from hdiscovery.directions.publish import located
    from hdiscovery.directions.run_folder import RunFolder
    from hdiscovery.dm.device import device_of
    from hdiscovery.dm.files import load_dm
    from hdiscovery.editing.inversion import generate, save_inversion
    from hdiscovery.editing.sheets import Sheet, draw_sheet

    device, convention, name = device_of(options.device), "asyrp", options.model
    if (located(Path(name)) / "config.json").is_file():
        config = run_config(RunFolder(located(Path(name))))
        name, convention = config.model.dm, config.sampling.grid
    files = listed(options.image)
    outputs = [options.out / f"{file.stem}.safetensors" for file in files]
    sheets = [path.with_suffix(".png") for path in outputs]
    refuse_own(files, [*outputs, *sheets])
    refuse_existing([*outputs, *sheets], options.overwrite)
    dm = load_dm(name, device=device)

    inverted = invert_files(files, dm, num_steps=options.steps, convention=convention)
    options.out.mkdir(parents=True, exist_ok=True)
    for file, path, picture, one in zip(files, outputs, sheets, inverted, strict=True):
        back = generate(dm, one.x_T[None], num_steps=options.steps, convention=convention)[0]
        quality = say_quality(file, one.x_0, back)
        save_inversion(path, one, dm)
        sheet = draw_sheet(
            picture,
            Sheet(
                title=f"{file.name}, {options.steps} steps, {quality}",
                cells=_cells(one.x_0, back, one.x_T / 3),
                columns=("original", "reconstruction", "noise x_T / 3"),
            ),
        )
        print(f"wrote {path} and {sheet}")


def refuse_own(files: Sequence[Path], paths: Sequence[Path]) -> None:
    """Refuse to write over the images themselves.

    Raises:
        FileExistsError: If one of the paths is one of the files.
    """
    given = {file.resolve() for file in files}
    for path in paths:
        if path.resolve() in given:
            raise FileExistsError(
                f"`--out` {path.parent} would put a result in place of the image {path} itself. "
                "Choose another folder."
            )


def refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """Refuse to replace files, before any work is done.

    Raises:
        FileExistsError: If one of them is there and ``overwrite`` is false.
    """
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{there[0]} exists{f', and {len(there) - 1} more' if len(there) > 1 else ''}. Choose "
            "another `--out`, or replace with `--overwrite`."
        )


def invert_files(
    files: Sequence[Path], dm: DiffusionModel, *, num_steps: int, convention: GridConvention
) -> list[Inverted]:
    """Read images and invert them, 32 at once; files of inversions are taken as they are."""
    import torch
    from tqdm import tqdm

    from hdiscovery.data.images import INVERSION, read_photo
    from hdiscovery.editing.inversion import Inverted, invert, load_inversion

    found: dict[Path, Inverted] = {}
    photos = []
    for file in files:
        if file.suffix == INVERSION:
            found[file] = load_inversion(file, dm)
            print(f"{file}: inverted before, in {found[file].num_steps} steps")
        else:
            photo = read_photo(file, dm.image_shape)
            print(f"{file}: {photo.changes or 'taken as it is'}")
            photos.append((file, photo.x))
    device = next(dm.unet.parameters()).device
    for start in tqdm(range(0, len(photos), 32), "inversion", disable=len(photos) <= 32):
        batch = photos[start : start + 32]
        x_0 = torch.stack([x for _, x in batch]).to(device)
        x_T = invert(dm, x_0, num_steps=num_steps, convention=convention)
        for (file, _), image, noise in zip(batch, x_0, x_T, strict=True):
            found[file] = Inverted(image, noise, num_steps)
    return [found[file] for file in files]


def steps_back(inverted: Sequence[Inverted], asked: int | None) -> int:
    """Return how many steps lead back to images: as many as were asked for, else as they came by.

    Raises:
        ValueError: If they came by different numbers of steps, and none was asked for.
    """
    taken = sorted({one.num_steps for one in inverted})
    if asked is None and len(taken) > 1:
        raise ValueError(
            f"The images were inverted in different numbers of steps, {taken}. Take one group at a "
            "time, or set the steps back by `--sampling-steps`."
        )
    return taken[0] if asked is None else asked


def say_quality(file: Path, x_0: torch.Tensor, back: torch.Tensor) -> str:
    """Print and return how well an image came back; say so where that is badly."""
    from hdiscovery.editing.inversion import LOW_PSNR, psnr

    value = psnr(x_0[None], back[None])[0]
    print(f"{file}: reconstruction PSNR {value:.1f} dB")
    if value < LOW_PSNR:
        print(
            f"warning: {file} comes back badly (under {LOW_PSNR:g} dB). An edit will show what "
            "was lost as well. More `--steps` help if the image is like those the model knows; "
            "if it is not, nothing does."
        )
    return f"PSNR {value:.1f} dB"


def _cells(*images: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.stack(images)[None]
