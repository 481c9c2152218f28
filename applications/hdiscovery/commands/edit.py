"""Edit images along directions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from hdiscovery.commands.bars import bars
from hdiscovery.commands.invert import say
from hdiscovery.commands.options import (
    BatchSize,
    Device,
    Images,
    InversionSteps,
    Overwrite,
    Shifts,
    Switch,
    given_images,
)

if TYPE_CHECKING:
    from hdiscovery.api.edit import Arranged

EXAMPLES = (
    "hdiscovery edit runs/a --image photo.png --direction 3:1.5 --direction 7:-2   # both at once",
    "hdiscovery edit runs/a --image photo.png --direction 3                 # a strip, -S to S",
    "hdiscovery edit runs/a --image photos/ --direction 3 --direction 7     # a grid of the two",
    "hdiscovery edit runs/a --image photo.png --direction 3 --direction 7:-2  # a strip, 7 fixed",
    "hdiscovery edit directions.safetensors --image photo.png --direction 3:1 --unit calibrated",
)
RENAMED = {"--steps": "--inversion-steps", "--columns": "--shifts", "--strength": "--unit"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Edit images along directions.

    Says how well each image comes back from its noise before anything is edited.

    Attributes:
        directions: A run's folder, the name of a shipped run, or a directions.safetensors.
        direction: A direction, counted from 0 or by its label, and its strength. Without a
            strength it is an axis from -S to S. Repeat it for several at once.
        kind: Which directions; without it, direct of a run, and mean of a file, or global if the
            file has no mean.
        unit: What strengths count in. plain is s as it was trained; calibrated makes 1 change an
            image as much along every direction.
        span: End of an axis; without it S, or 1 if calibrated.
        sampling_steps: DDIM steps from the noise to an image; without it, as many as the
            inversion took.
        unscaled: Do not scale strengths by the training's steps over the sampling steps.
        dm: For a file: the diffusion model, if not the one that the file names.
        another_dm: For a file: allow a diffusion model that it was not made for.
        out: Folder of the results.
    """

    directions: Annotated[Positional[Path], arg(metavar="RUN")]
    image: Images = ()
    direction: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="K[:S]")] = ()
    kind: Literal["direct", "mean", "global"] | None = None
    unit: Literal["plain", "calibrated"] = "plain"
    span: float | None = None
    shifts: Shifts = 7
    inversion_steps: InversionSteps = 100
    sampling_steps: int | None = None
    unscaled: Switch = False
    dm: Annotated[str | None, arg(metavar="MODEL")] = None
    another_dm: Switch = False
    batch_size: BatchSize = 32
    out: Path = Path("edited")
    device: Device = "auto"
    overwrite: Overwrite = False


def run(options: Options) -> None:
    """Invert, say how well that went, then edit."""
    from hdiscovery.api.edit import arrange_edits, edit
    from hdiscovery.api.invert import invert
    from hdiscovery.api.open import open
    from hdiscovery.data.images import listed

    files = listed(given_images(options.image))
    directions = open(
        options.directions, kind=options.kind, dm=options.dm, another_dm=options.another_dm,
        device=options.device,
    )  # fmt: skip
    how = {"unit": options.unit, "span": options.span, "shifts": options.shifts}
    arranged = arrange_edits(directions, options.direction, **how)
    arranged.paths(files, options.out, overwrite=options.overwrite)  # refused before the work
    say_untrained(arranged, directions.about.S)
    inversion = invert(
        directions, files, inversion_steps=options.inversion_steps,
        sampling_steps=options.sampling_steps, batch_size=options.batch_size, progress=bars,
    )  # fmt: skip
    say(inversion)
    edits = edit(
        directions, inversion, options.direction, unscaled=options.unscaled,
        batch_size=options.batch_size, progress=bars, **how,
    )  # fmt: skip
    for path in edits.save(options.out, overwrite=options.overwrite):
        print("wrote", path)


def say_untrained(arranged: Arranged, S: float) -> None:
    """Say so if an edit is stronger than any shift of the training."""
    if arranged.s.abs().max() > S:
        print(f"note: strengths beyond S = {S:g} were not trained")
