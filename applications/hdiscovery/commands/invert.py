"""Find the noise that images come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from hdiscovery.commands.bars import bars
from hdiscovery.commands.options import (
    BatchSize,
    Device,
    Images,
    InversionSteps,
    Overwrite,
    given_images,
)

if TYPE_CHECKING:
    from hdiscovery.api.invert import Inversion

EXAMPLES = (
    "hdiscovery invert MNIST32-small --image digit.png",
    "hdiscovery invert runs/a --image photos/ --inversion-steps 250 --out inverted",
    "hdiscovery edit runs/a --image inverted/digit.safetensors --direction 3",
)
RENAMED = {"--steps": "--inversion-steps"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Find the noise that images come from, and say how well they come back.

    Attributes:
        model: A diffusion model (its file, its folder, or a shipped one's name), or a run: its
            model and time grid.
        out: Folder of the results: a .safetensors file and a picture for each image.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    image: Images = ()
    inversion_steps: InversionSteps = 100
    batch_size: BatchSize = 32
    out: Path = Path("inverted")
    device: Device = "auto"
    overwrite: Overwrite = False


def run(options: Options) -> None:
    """Invert, and say how well the images come back."""
    from hdiscovery.api.invert import invert, outputs
    from hdiscovery.data.images import listed

    files = listed(given_images(options.image))
    outputs(files, options.out, overwrite=options.overwrite)  # refused before the work
    found = invert(
        options.model, files, inversion_steps=options.inversion_steps,
        batch_size=options.batch_size, device=options.device, progress=bars,
    )  # fmt: skip
    say(found)
    for path in found.save(options.out, overwrite=options.overwrite):
        print(f"wrote {path}")


def say(inversion: Inversion) -> None:
    """Print what was done to each image and how well it comes back, with a warning if badly."""
    from hdiscovery.editing.inversion import LOW_PSNR

    for j, file in enumerate(inversion.files):
        print(f"{file}: {inversion.notes[j]}")
        print(f"{file}: reconstruction {inversion.quality(j)}")
        if inversion.psnr[j] < LOW_PSNR:
            print(
                f"warning: {file} comes back badly (under {LOW_PSNR:g} dB), and an edit loses as "
                "much. If the image is like those that the model knows, more `--inversion-steps` "
                "help; if it is not, nothing does."
            )
