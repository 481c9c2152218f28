"""Write a page that shows the directions of one run, or of several side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from hdiscovery.commands.bars import bars
from hdiscovery.commands.options import Device, Shifts

EXAMPLES = (
    "hdiscovery gallery runs/a                       # writes runs/a/index.html",
    "hdiscovery gallery runs/a runs/b --out ab.html  # side by side",
    "cp ~/Downloads/labels.json runs/a               # the next page has the labels",
)
RENAMED = {"--columns": "--shifts", "--only": "--direction"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Write a page that shows the directions of one run, or of several side by side.

    Attributes:
        runs: Runs' folders, or names of shipped runs.
        out: The .html file. Without it: index.html in the run's folder, NAME.html here for a
            shipped run, gallery.html here for several runs.
        direction: Directions to draw, counted from 0; without it, all of them.
        pairs: Pairs to measure the accuracy on.
        samples: Samples of each direction.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]")]
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    direction: Annotated[tuple[int, ...], arg(metavar="K [K ...]")] = ()
    pairs: int = 512
    samples: int = 6
    shifts: Shifts = 9
    device: Device = "auto"


def run(options: Options) -> None:
    """Write the page and print where it is."""
    from hdiscovery.api.gallery import gallery

    page = gallery(
        *options.runs, out=options.out, directions=options.direction or None, pairs=options.pairs,
        samples=options.samples, shifts=options.shifts, device=options.device, progress=bars,
    )  # fmt: skip
    print(page)
