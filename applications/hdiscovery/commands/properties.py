"""Measure how alike direct, mean and global directions are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import UseAppendAction, arg

from hdiscovery.commands.bars import bars
from hdiscovery.commands.invert import say
from hdiscovery.commands.options import (
    BatchSize,
    Device,
    Images,
    InversionSteps,
    Overwrite,
    Run,
    Shifts,
    given_images,
)

if TYPE_CHECKING:
    from hdiscovery.directions.direction_set import DirectionSet
    from hdiscovery.editing.properties import Edited

EXAMPLES = (
    "hdiscovery publish runs/a --to file   # first: measures the means",
    "hdiscovery properties runs/a",
    "hdiscovery properties runs/a --image photo.png --direction 3 --direction 7",
)
RENAMED = {"--steps": "--inversion-steps", "--columns": "--shifts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Measure how alike direct, mean and global directions are.

    Writes properties.json, and properties.png to look at.

    Attributes:
        samples: Fresh samples to measure on, and to edit if no image is given.
        seed: Of the samples; the means are of other samples.
        strength: Strength s of the edits; without it S.
        direction: Directions to draw; without one, the most and the least alike.
        out: Folder of the results; without it RUN, or here for a shipped run.
    """

    run: Run
    image: Images = ()
    inversion_steps: InversionSteps = 100
    samples: int = 8
    seed: int = 1
    strength: float | None = None
    direction: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="K")] = ()
    shifts: Shifts = 7
    batch_size: BatchSize = 32
    out: Path | None = None
    device: Device = "auto"
    overwrite: Overwrite = False


def run(options: Options) -> None:
    """Measure cosines and edited images; write properties.json and properties.png."""
    from hdiscovery.api.files import refuse_existing
    from hdiscovery.directions.run_folder import RunFolder
    from hdiscovery.directions.shipped import located
    from hdiscovery.editing.properties import draw, measure, open_kinds
    from hdiscovery.editing.report import sentences

    folder = located(options.run)
    out = options.out or (folder if folder == options.run else Path())
    refuse_existing([out / "properties.json", out / "properties.png"], options.overwrite)
    kinds = open_kinds(folder, seed=options.seed, device=options.device)
    asked = kinds.directions(options.direction)
    images = images_to_edit(options, kinds.direct)
    strength = kinds.means.about.S if options.strength is None else options.strength
    measured, alike = measure(
        kinds, images, strength=strength, samples=options.samples, seed=options.seed, progress=bars
    )
    out.mkdir(parents=True, exist_ok=True)
    print("wrote", RunFolder(out).write_json("properties.json", measured))
    print("\n".join(sentences(measured)))
    path = out / "properties.png"
    print("wrote", draw(path, kinds, images, asked or alike, strength, options.shifts))


def images_to_edit(options: Options, source: DirectionSet) -> Edited:
    """Return the given images, inverted, or samples if no image is given."""
    from hdiscovery.api.invert import invert
    from hdiscovery.editing.properties import Edited, sampled

    if not options.image:
        return sampled(source, options.samples, options.seed)
    found = invert(
        source, given_images(options.image), inversion_steps=options.inversion_steps,
        batch_size=options.batch_size, progress=bars,
    )  # fmt: skip
    say(found)
    return Edited(found.x_T, found.back, found.num_steps, [one.x_0 for one in found.images])
