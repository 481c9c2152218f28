"""Hold a run's direct, mean and global directions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainograd.samplers import time_grid
from hdiscovery.directions.direction_set import DirectionSet, Kind
from hdiscovery.directions.open import open_directions
from hdiscovery.directions.portable import FILE, PortableDirections, load_directions
from hdiscovery.dm.device import device_of
from hdiscovery.dm.walk import draw_noise
from hdiscovery.editing.distance import build_features
from hdiscovery.editing.editor import edit
from hdiscovery.editing.inversion import generate
from hdiscovery.editing.layout import Asked, arrange, parse_direction
from hdiscovery.editing.likeness import (
    measure_cosines,
    measure_differences,
    most_and_least_alike,
)
from hdiscovery.editing.report import report
from hdiscovery.editing.sheets import Sheet, draw_sheet
from hdiscovery.editing.sheets import strength as word
from hdiscovery.progress import Bars, counted

KINDS: tuple[Kind, ...] = ("direct", "mean", "global")


class Edited(NamedTuple):
    """What is edited: noise, what it becomes without a shift, DDIM steps, the originals if any."""

    x_T: Tensor
    x_0: Tensor
    num_steps: int
    originals: list[Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Kinds:
    """A run's directions in each of the three kinds.

    Attributes:
        sources: The directions of each kind.
        means: The file that mean and global directions are from.
    """

    sources: dict[Kind, DirectionSet]
    means: PortableDirections

    @property
    def direct(self) -> DirectionSet:
        """The run's own directions."""
        return self.sources["direct"]

    def directions(self, texts: Sequence[str]) -> list[int]:
        """Return the directions that words name."""
        return [parse_direction(text, self.means.about).k for text in texts]


def open_kinds(folder: Path, *, seed: int, device: str) -> Kinds:
    """Open a run's directions in each of the three kinds.

    Raises:
        FileNotFoundError: If the run's means were not measured.
        ValueError: If the means are of samples of the same seed, which are alike by construction.
    """
    where = device_of(device)
    sources: dict[Kind, DirectionSet] = {
        kind: open_directions(folder, kind, device=where) for kind in KINDS
    }
    means = load_directions(folder / FILE)
    if seed == means.about.seed:
        raise ValueError(
            f"`--seed {seed}` draws the samples that the means are made of, which are alike by "
            "construction. Take another seed."
        )
    return Kinds(sources, means)


def sampled(source: DirectionSet, samples: int, seed: int) -> Edited:
    """Return samples to edit."""
    dm, about = source.dm, source.about
    x_T = draw_noise(dm, samples, seed)
    x_0 = generate(dm, x_T, num_steps=about.M, convention=about.grid)
    return Edited(x_T, x_0, about.M, [])


def measure(
    kinds: Kinds, images: Edited, *, strength: float, samples: int, seed: int, progress: Bars
) -> tuple[dict[str, Any], list[int]]:
    """Return the content of ``properties.json``, and the most and the least alike direction."""
    source, about = kinds.direct, kinds.means.about
    grid = time_grid(about.M, source.dm.schedule.num_train_steps, convention=about.grid)
    cosines = measure_cosines(
        source, kinds.means, draw_noise(source.dm, samples, seed), grid,
        progress=counted(progress("cosines"), len(about.times)),
    )  # fmt: skip
    differences = measure_differences(
        kinds.sources, {name: build_features(name, source.dm) for name in ("pixels", "encoder")},
        images.x_T, images.x_0, strength=strength, num_steps=images.num_steps,
        progress=progress("edited images"),
    )  # fmt: skip
    measured = report(
        kinds.means, cosines, differences, strength=strength, num_steps=images.num_steps,
        images=len(images.x_T), given_images=len(images.originals),
    )  # fmt: skip
    return measured, most_and_least_alike([of_k["pixels"] for of_k in differences])


def draw(
    path: Path, kinds: Kinds, images: Edited, chosen: list[int], strength: float, shifts: int
) -> Path:
    """Draw the first image along directions in the way of Fig. 9, a row for each kind."""
    about, rows, labels = kinds.direct.about, [], []
    layout = arrange([Asked(chosen[0], None)], span=strength, columns=shifts)
    for k in chosen:
        for kind in KINDS:
            edited = edit(
                kinds.sources[kind], images.x_T[:1], [k], layout.s[0], num_steps=images.num_steps
            )
            rows.append(edited[0])
            labels.append(f"direction {about.title(k)}\n{kind}")
    given = [("original", images.originals[0])] if images.originals else []
    middle = "reconstruction" if given else "sample"
    return draw_sheet(path, Sheet(
        title=f"direct, mean and global directions; in the middle the DDIM {middle}",
        cells=torch.stack(rows), columns=[word(s) for s in layout.across], rows=labels,
        beside=given,
    ))  # fmt: skip
