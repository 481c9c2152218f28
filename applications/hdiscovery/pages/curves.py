"""Training curves as inline SVG, each with a dashed reference: the value of a blind guess."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Matplotlib writes literal colours. These four are placeholders: each is replaced by a CSS variable
# of the page, so that one drawing serves both the light and the dark theme.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--rule)",
    "#040404": "var(--accent)",
}
_INK, _MUTED, _RULE, _ACCENT = _COLOURS
_MAX_POINTS = 300  # along the step axis; it bounds the size of a long run's drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One recorded quantity over the training steps.

    Attributes:
        title: Title of the curve.
        meaning: Meaning of the dashed reference, and the curve's final value.
        svg: The drawing; its colours are the CSS variables ink, muted, rule, accent.
        description: The drawing in words, for screen readers.
    """

    title: str
    meaning: str
    svg: str
    description: str


class _Wanted(NamedTuple):
    """A curve that is drawn if the records hold it, and its reference level."""

    key: str
    title: str
    level: float
    name: str
    meaning: str


def training_curves(records: Sequence[Mapping[str, float]], *, K: int, S: float) -> list[Curve]:
    """Return the curves of L_G, cross entropy and shift error, as far as they were recorded.

    Args:
        records: One mapping per step, with ``step`` and any of ``L_G``, ``cross_entropy`` and
            ``shift_error``. Values that are not finite are left out, and so is a curve of fewer
            than two values.
        K: Number of directions; a guess has cross entropy ln K.
        S: Largest training shift; s is uniform in [-S, S], so s_hat = 0 is S/2 off on average.

    Raises:
        ValueError: If a record has no step.
    """
    wanted = (
        _Wanted("L_G", "Generator loss L_G", math.log(2), "ln 2",
                "At ln 2 the discriminator cannot tell shifted images from originals."),
        _Wanted("cross_entropy", "Cross entropy of k", math.log(K), "ln K",
                "At ln K the reconstructor only guesses the direction."),
        _Wanted("shift_error", "Shift error |ŝ − s|", S / 2, "S/2",
                "At S/2 the reconstructor is no better than a constant answer of 0."),
    )  # fmt: skip
    curves = (_curve(one, *_series(records, one.key)) for one in wanted)
    return [curve for curve in curves if curve is not None]


def _curve(
    wanted: _Wanted, steps: NDArray[np.float64], values: NDArray[np.float64]
) -> Curve | None:
    if len(steps) < 2:
        return None
    smooth = _moving_mean(values, max(1, len(values) // 25))
    end, level = f"{smooth[-1]:.3f}", f"{wanted.level:.3f}"
    label = f"{wanted.name}\n{level}"
    return Curve(
        title=wanted.title,
        meaning=f"{wanted.meaning} This run ends at {end}.",
        svg=_draw(steps, values, smooth, level=wanted.level, label=label),
        description=f"{wanted.title} over {len(steps):,} records up to step {steps[-1]:,.0f}: "
        f"it starts at {smooth[0]:.3f} and ends at {end}; {wanted.name} is {level}.",
    )


def _series(
    records: Sequence[Mapping[str, float]], key: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    try:
        pairs = [(r["step"], r[key]) for r in records if math.isfinite(r.get(key, math.nan))]
    except KeyError as error:
        raise ValueError(
            "A record has no key 'step'. Every one of `records` needs it: leave out the others."
        ) from error
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def _moving_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the centred moving mean; near the ends, the window is cut off."""
    half = window // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    start, stop = np.maximum(i - half, 0), np.minimum(i + half + 1, len(values))
    return (total[stop] - total[start]) / (stop - start)


def _draw(
    steps: NDArray[np.float64],
    values: NDArray[np.float64],
    smooth: NDArray[np.float64],
    *,
    level: float,
    label: str,
) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    chunks = np.array_split(np.arange(len(steps)), min(len(steps), _MAX_POINTS))
    # The lowest and the highest value of each chunk in turn: fewer points, but no outlier is lost.
    outline = np.array([(values[c].min(), values[c].max()) for c in chunks]).ravel()
    at = np.array([steps[c].mean() for c in chunks])
    last = [c[-1] for c in chunks]

    with matplotlib.rc_context(
        {"svg.hashsalt": "hdiscovery", "svg.fonttype": "none", "font.size": 9}
    ):
        figure = Figure(figsize=(4.4, 2.4))
        axes = figure.add_axes((0.1, 0.13, 0.77, 0.82))
        axes.plot(at.repeat(2), outline, color=_MUTED, linewidth=0.6, alpha=0.45)
        axes.plot(steps[last], smooth[last], color=_ACCENT, linewidth=1.8)
        axes.axhline(level, color=_INK, linewidth=0.9, dashes=(4, 3), zorder=3)
        axes.annotate(label, (1.02, level), xycoords=("axes fraction", "data"), va="center",
                      color=_MUTED, annotation_clip=False)  # fmt: skip
        _style(axes, steps)
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    return _inline(file.getvalue())


def _style(axes: Axes, steps: NDArray[np.float64]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(steps[0], steps[-1])
    axes.margins(y=0.08)
    axes.grid(axis="y", color=_RULE, linewidth=0.6)
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelcolor=_MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def _inline(svg: str) -> str:
    """Return the part of an SVG file that HTML needs: no prologue, namespaces, size or fonts."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)  # would style the page
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)  # ids repeat in every drawing and are not used
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg
