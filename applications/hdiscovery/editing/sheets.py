"""Images in rows and columns, with what they are written beside them."""

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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sheet:
    """What a figure shows.

    Attributes:
        title: Above all.
        cells: ``[rows, columns, C, H, W]`` in [-1, 1].
        columns: A label for each column, or none at all.
        rows: A label for each row, or none at all.
        beside: Images to the left with their labels, such as the original.
    """

    title: str
    cells: Tensor
    columns: Sequence[str] = ()
    rows: Sequence[str] = ()
    beside: Sequence[tuple[str, Tensor]] = ()


def draw_sheet(path: Path, sheet: Sheet) -> Path:
    """Write a sheet as PNG, complete or not at all."""
    from matplotlib.figure import Figure

    R, C = sheet.cells.shape[:2]
    # Images beside stand in one column where they fit below each other, else in one row.
    front = len(sheet.beside) if len(sheet.beside) > R else min(len(sheet.beside), 1)
    edge = max(0.9, min(1.6, 12 / (C + front)))  # inches
    size = (
        max((C + front) * edge + 0.6, 4.0),
        R * (edge + 0.05) + 0.6 + 0.17 * sheet.title.count("\n"),
    )
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    figure.suptitle(sheet.title, fontsize=10)
    # A narrow empty column keeps what is beside apart.
    widths = [1.0] * front + [0.12] * bool(front) + [1.0] * C
    places = figure.add_gridspec(R, len(widths), width_ratios=widths)
    for j, (label, image) in enumerate(sheet.beside):
        place = places[j, 0] if front == 1 else places[0, j]
        _show(figure.add_subplot(place), image, title=label)
    for r, c in itertools.product(range(R), range(C)):
        _show(
            figure.add_subplot(places[r, len(widths) - C + c]),
            sheet.cells[r, c],
            title=sheet.columns[c] if sheet.columns and r == 0 else "",
            left=sheet.rows[r] if sheet.rows and c == 0 else "",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, format="png")
    return partial.replace(path)


def strength(s: float) -> str:
    """Return a strength as one reads it.

    Example:
        >>> strength(2.5), strength(-1), strength(0)
        ('+2.5', '−1', '0')
    """
    return format(s, "+.3g").replace("-", "−") if s else "0"


def _show(axes: Axes, x: Tensor, *, title: str = "", left: str = "") -> None:
    image = to_image(x)
    smooth = "antialiased" if image.width >= 100 else "nearest"  # few pixels are shown as such
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    axes.set_title(title, fontsize=9)
    axes.set_ylabel(left, fontsize=9, rotation=0, ha="right", va="center")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
