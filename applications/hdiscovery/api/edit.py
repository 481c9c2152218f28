"""Edit images along directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hdiscovery.api.files import refuse_existing
from hdiscovery.api.invert import Images, Inversion, invert
from hdiscovery.api.open import open
from hdiscovery.data.images import save_image
from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.editing import editor
from hdiscovery.editing.layout import Layout, arrange, parse_direction
from hdiscovery.editing.sheets import Sheet, draw_sheet, strength
from hdiscovery.progress import Bars, silent

Unit = Literal["plain", "calibrated"]


@dataclass(frozen=True, slots=True, eq=False)
class Arranged:
    """Edits in rows and columns, before they are made.

    Attributes:
        layout: Which directions, how strong, in which row and column.
        s: Strengths as the shift block takes them, ``[rows, columns, n]``.
        name: What files of these edits are called.
    """

    layout: Layout
    s: Tensor
    name: str

    @property
    def is_one(self) -> bool:
        """Whether there is one edit, which is written by itself as well."""
        return not self.layout.across

    def paths(self, files: Sequence[Path], folder: Path, *, overwrite: bool) -> list[list[Path]]:
        """Return for each image where its sheet and, if there is one edit, that edit is written.

        Raises:
            FileExistsError: If one of them is there and ``overwrite`` is false.
        """
        ends = ("_sheet.png", ".png") if self.is_one else (".png",)
        paths = [[folder / f"{f.stem}_{self.name}{end}" for end in ends] for f in files]
        # Sheets first: they are what a message names.
        refuse_existing([path for column in zip(*paths, strict=True) for path in column], overwrite)
        return paths


@dataclass(frozen=True, slots=True, eq=False)
class Edits:
    """Edited images.

    Attributes:
        directions: The directions that the images were edited along.
        inversion: The images before, and how well they come back.
        arranged: What each edit is.
        images: ``[N, rows, columns, C, H, W]``, not clamped.
    """

    directions: DirectionSet
    inversion: Inversion
    arranged: Arranged
    images: Tensor

    def save(self, folder: Path, *, overwrite: bool = False) -> list[Path]:
        """Write a sheet of each image's edits and, if there is one edit, that edit; as PNG.

        Raises:
            FileExistsError: If a file is there and ``overwrite`` is false.
        """
        written = []
        paths = self.arranged.paths(self.inversion.files, folder, overwrite=overwrite)
        for j, (sheet, *alone) in enumerate(paths):
            written.append(draw_sheet(sheet, self.sheet(j)))
            written += [save_image(self.images[j, 0, 0], path) for path in alone]
        return written

    def sheet(self, j: int) -> Sheet:
        """Return the figure of image j's edits; the axes are named by their directions."""
        layout, about = self.arranged.layout, self.directions.about
        facts = [f"{arrow} direction {about.title(k)}"
                 for arrow, k in zip("→↑", layout.axes, strict=False)]  # fmt: skip
        facts += [f"direction {about.title(k)} at {strength(s)}" for k, s in layout.fixed]
        inversion = self.inversion
        return Sheet(
            title=f"{inversion.files[j].name}, {inversion.quality(j)}\n{',  '.join(facts)}",
            cells=self.images[j],
            columns=[strength(s) for s in layout.across] or ["edited"],
            rows=[strength(s) for s in layout.down],
            beside=(("original", inversion.images[j].x_0), ("reconstruction", inversion.back[j])),
        )


def edit(
    directions: DirectionSet | str | Path,
    images: Inversion | Images,
    along: Sequence[str],
    *,
    unit: Unit = "plain",
    span: float | None = None,
    shifts: int = 7,
    inversion_steps: int = 100,
    sampling_steps: int | None = None,
    unscaled: bool = False,
    batch_size: int = 32,
    device: str = "auto",
    progress: Bars = silent,
) -> Edits:
    """Edit images along directions.

    Args:
        directions: Opened directions, or what :func:`open` takes.
        images: What :func:`invert` takes, or what it returned: many edits need one inversion.
        along: Directions as the command line has them. ``"3:1.5"`` is direction 3 at strength
            1.5, ``"3"`` alone is an axis from -S to S, and a label may stand for the number. One
            axis makes a strip, two make a grid.
        unit: ``"calibrated"`` makes strength 1 change an image as much along every direction.
        span: End of the axes; S by default, 1 if calibrated.
        shifts: Images along an axis, odd.
        inversion_steps: As in :func:`invert`, for images that were not inverted.
        sampling_steps: As in :func:`invert`, for images that were not inverted.
        unscaled: Do not scale strengths by the training's M over the sampling steps.
        batch_size: Images at once.
        device: Where to compute, if ``directions`` are not opened yet.
        progress: Makes a progress bar of a name.

    Returns:
        The edited images; ``save(folder)`` writes them.

    Raises:
        FileNotFoundError: If an image or the directions are not there.
        ValueError: If a direction does not exist or a number is out of range.

    Cost:
        ``sampling_steps`` evaluations of the network for each edit of each image.

    Example:
        >>> import hdiscovery
        >>> edits = hdiscovery.edit("digits", photo, ["10:3"], inversion_steps=5, device="cpu")
        >>> edits.images.shape
        torch.Size([1, 1, 1, 1, 32, 32])
    """
    if not isinstance(directions, DirectionSet):
        directions = open(directions, device=device)
    arranged = arrange_edits(directions, along, unit=unit, span=span, shifts=shifts)
    if not isinstance(images, Inversion):
        images = invert(
            directions, images, inversion_steps=inversion_steps, sampling_steps=sampling_steps,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
    edited = editor.edit(
        directions, images.x_T, arranged.layout.k, arranged.s.flatten(0, 1),
        num_steps=images.num_steps, gain=1.0 if unscaled else None, batch_size=batch_size,
        progress=progress("editing"),
    )  # fmt: skip
    return Edits(directions, images, arranged, edited.unflatten(1, arranged.s.shape[:2]))


def arrange_edits(
    directions: DirectionSet,
    along: Sequence[str],
    *,
    unit: Unit = "plain",
    span: float | None = None,
    shifts: int = 7,
) -> Arranged:
    """Return which edits :func:`edit` makes, without making them.

    Raises:
        ValueError: If a direction does not exist or a number is out of range.
    """
    about, calibrated = directions.about, unit == "calibrated"
    if span is None:
        span = 1.0 if calibrated else about.S
    layout = arrange([parse_direction(text, about) for text in along], span=span, columns=shifts)
    s = layout.s * torch.tensor(about.scales(layout.k)) if calibrated else layout.s
    return Arranged(layout, s, f"{directions.kind}_{layout.name}{'_calibrated' * calibrated}")
