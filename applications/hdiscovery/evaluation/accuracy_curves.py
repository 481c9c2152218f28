"""The picture of RCA against the size of the shift: one line for each subject and reconstructor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hdiscovery.evaluation.drawing import plain_axes, save_figure

COLOURS = (
    "tab:blue",
    "tab:orange",
    "tab:green",
    "tab:purple",
    "tab:brown",
    "tab:cyan",
    "tab:olive",
)


def draw_accuracy(report: Mapping[str, Any], path: Path) -> Path | None:
    """Write the accuracy curves of a report as a picture.

    Args:
        report: As `hdiscovery.evaluation.report.evaluate` yields it.
        path: A ``.png`` file. It is replaced only when the new picture is complete.

    Returns:
        ``path``, or None if the report has no RCA.
    """
    lines = _lines(report)
    if not lines:
        return None
    figure, axes = plain_axes(6.4, 4)
    for line in lines:
        _plot(axes, *line)
    chance = 1 / report["K"]
    axes.axhline(chance, color="0.6", lw=0.8, ls=":", label=f"chance: {chance:.2f}")
    axes.set(xlabel="|s|", ylabel="share of directions recognised", ylim=(0, 1.02),
             xlim=(0, report["S"]), title="RCA against the size of the shift")  # fmt: skip
    axes.legend(frameon=False, fontsize=8, handlelength=3.5)
    return save_figure(figure, path)


def _lines(report: Mapping[str, Any]) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """Return subject, reconstructor, colour and measured accuracy of each line."""
    return [
        (name, own, colour, accuracy)
        for (name, results), colour in zip(report["subjects"].items(), COLOURS, strict=False)
        for own, accuracy in (("own R", results.get("rca")),
                              ("fresh R", results.get("fresh", {}).get("test")))
        if accuracy
    ]  # fmt: skip


def _plot(axes: Any, name: str, which: str, colour: str, accuracy: Mapping[str, Any]) -> None:
    points = [point for point in accuracy["curve"] if point["rca"] is not None]
    axes.plot(
        [(point["from"] + point["to"]) / 2 for point in points],
        [point["rca"] for point in points],
        color=colour, ls="-" if which == "own R" else "--", marker="o", ms=3,
        label=f"{name}, {which}: {accuracy['rca']:.2f}",
    )  # fmt: skip
