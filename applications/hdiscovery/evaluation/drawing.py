"""Figures of the measures: a plain look, and a file that is complete or not there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plain_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of that size in inches, with axes that have no box around them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG; the file is replaced only when the new one is complete."""
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=130)
    return partial.replace(path)
