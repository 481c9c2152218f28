"""Fig. 3 of the paper: the same samples under the shifts of every variant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from torch import Tensor

from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.pages.draw import draw_strips, even_shifts


def draw_variants(
    variants: Mapping[str, tuple[DirectionSet, int]],
    path: Path,
    *,
    samples: int = 2,
    columns: int = 9,
    seed: int = 7,
) -> Path:
    """Draw the same samples along one direction of each variant, as a PNG.

    Args:
        variants: Directions and one direction k of each, by the variant's name.
        path: The file, written complete or not at all.
        samples: Samples of each.
        columns: Shifts from -S to S, odd.
        seed: Of the samples.

    Returns:
        ``path``.
    """
    rows, width = len(variants) * samples, 0.62 * columns
    figure, axes = plt.subplots(rows, columns, figsize=(width + 1.6, 0.66 * rows), squeeze=False)
    for v, (name, (directions, k)) in enumerate(variants.items()):
        shifts = even_shifts(directions.S, columns)
        strips = draw_strips(directions, k, samples=samples, shifts=shifts, seed=seed)
        for n in range(samples):
            for j, s in enumerate(shifts):
                ax = axes[v * samples + n][j]
                ax.imshow(**_image(strips[n, j]))
                ax.set(xticks=[], yticks=[])
                if v == n == 0:
                    ax.set_title(f"{s:+.3g}" if s else "0", fontsize=8)
        label = axes[v * samples + (samples - 1) // 2][0]
        label.set_ylabel(f"{name}\nk = {k}", rotation=0, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(wspace=0.05, hspace=0.05)
    partial = path.with_name(f"{path.stem}.partial.png")
    figure.savefig(partial, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return partial.replace(path)


def _image(x: Tensor) -> dict[str, Any]:
    """Return what ``imshow`` is given to draw an image ``[C, H, W]`` in [-1, 1]."""
    pixels = ((x + 1) / 2).permute(1, 2, 0)
    if pixels.shape[-1] == 1:
        return {"X": pixels[..., 0].numpy(), "cmap": "gray", "vmin": 0, "vmax": 1}
    return {"X": pixels.numpy()}


def best_direction(report: Mapping[str, Any]) -> int:
    """Return the direction that an evaluation ranks first, or recognises best; 0 if it says none.

    Where directions were ranked, by their score; else by RCA.
    """
    learnt = report["subjects"].get("learnt", {})
    if "marks" in learnt:
        marks = learnt["marks"]["directions"]
        return max(marks, key=lambda mark: (mark["score"] or 0.0, -mark["k"]))["k"]
    recalls = learnt.get("rca", {}).get("of_direction", [])
    return max(range(len(recalls)), key=lambda k: (recalls[k] or 0.0, -k), default=0)
