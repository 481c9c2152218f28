"""Draws the named directions of the runs that are shipped: ``python docs/digits/named.py``."""

from __future__ import annotations

from pathlib import Path

from hdiscovery.gallery.draw import draw_strips, even_shifts
from hdiscovery.published import open_directions
from hdiscovery.run import RunFolder
from matplotlib.figure import Figure
from results import SHIPPED, SHIPPED_20, read

SAMPLES, COLUMNS, SEED = 4, 9, 7


def draw(folder: Path, out: Path) -> None:
    """Draw, best first, in two columns."""
    run = read(folder)
    discovery, _ = open_directions(RunFolder.open(folder))
    shifts = even_shifts(run["config"]["S"], COLUMNS)
    ks = [row["k"] for row in run["ranking"]["directions"] if str(row["k"]) in run["labels"]]
    rows = -(-len(ks) // 2)
    figure = Figure(figsize=(9, 2.1 * rows), layout="constrained")
    for axes in figure.subplots(rows, 2, squeeze=False).flat:
        axes.axis("off")
    for k, axes in zip(ks, figure.axes, strict=False):
        strips = draw_strips(discovery, k, samples=SAMPLES, shifts=shifts, seed=SEED)
        N, C, _, H, W = strips.shape
        image = strips[:, :, 0].permute(0, 2, 1, 3).reshape(N * H, C * W)
        axes.imshow(image, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(f"{k}: {run['labels'][str(k)]}", fontsize=9, loc="left")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    for shipped, name in ((SHIPPED, "named.png"), (SHIPPED_20, "named_20.png")):
        draw(shipped, Path(__file__).with_name(name))
