"""Sheets: images in rows and columns with labels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from hdiscovery.data.images import to_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sheet:
    """The content of a figure.

    Attributes:
        title: Title above the images.
        cells: ``[rows, columns, C, H, W]`` in [-1, 1].
        columns: A label for each column, or an empty sequence.
        rows: A label for each row, or an empty sequence.
        beside: Labelled images to the left of the rows, such as the original.
    """

    title: str
    cells: Tensor
    columns: Sequence[str] = ()
    rows: Sequence[str] = ()
    beside: Sequence[tuple[str, Tensor]] = ()


def draw_sheet(path: Path, sheet: Sheet) -> Path:
    """Write a sheet as PNG; the file is replaced only when the new one is complete."""
    R, C = sheet.cells.shape[:2]
    # Images beside the rows stand in one column if they fit below each other, else in one row.
    front = len(sheet.beside) if len(sheet.beside) > R else min(len(sheet.beside), 1)
    figure = _figure(sheet.title, R, C + front)
    # A narrow empty column separates the images beside the rows from the rows.
    widths = [1.0] * front + [0.12] * bool(front) + [1.0] * C
    places = figure.add_gridspec(R, len(widths), width_ratios=widths)
    for j, (label, image) in enumerate(sheet.beside):
        place = places[j, 0] if front == 1 else places[0, j]
        _show(figure.add_subplot(place), image, title=label)
    for r, c in itertools.product(range(R), range(C)):
        axes = figure.add_subplot(places[r, len(widths) - C + c])
        title = sheet.columns[c] if sheet.columns and r == 0 else ""
        left = sheet.rows[r] if sheet.rows and c == 0 else ""
        _show(axes, sheet.cells[r, c], title=title, left=left)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, format="png")
    return partial.replace(path)


def _figure(title: str, rows: int, columns: int) -> Figure:
    from matplotlib.figure import Figure

    edge = max(0.9, min(1.6, 12 / columns))  # inches
    width = max(columns * edge + 0.6, 4.0)
    height = rows * (edge + 0.05) + 0.6 + 0.17 * title.count("\n")
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    figure.suptitle(title, fontsize=10)
    return figure


def strength(s: float) -> str:
    """Return a strength as text, with its sign.

    Example:
        >>> strength(2.5), strength(-1), strength(0)
        ('+2.5', '−1', '0')
    """
    return format(s, "+.3g").replace("-", "−") if s else "0"


def _show(axes: Axes, x: Tensor, *, title: str = "", left: str = "") -> None:
    image = to_image(x)
    smooth = "antialiased" if image.width >= 100 else "nearest"  # pixels of small images stay sharp
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    axes.set_title(title, fontsize=9)
    axes.set_ylabel(left, fontsize=9, rotation=0, ha="right", va="center")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
