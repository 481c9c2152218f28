"""Draws the directions of a published run that have a name: ``python docs/digits/named.py FOLDER``.

Writes named.png, or named-20.png for the folder of ``digits-20``; by default, that of ``digits``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import open_networks
from hdiscovery.pages.draw import draw_strips, even_shifts
from matplotlib.figure import Figure
from results import SHIPPED, read

SAMPLES, COLUMNS, SEED = 4, 9, 7


def main() -> None:
    """Draw, best first, in two columns."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED
    run = read(folder)
    networks, _ = open_networks(RunFolder.open(folder))
    shifts = even_shifts(run["config"]["S"], COLUMNS)
    ks = [row["k"] for row in run["ranking"]["directions"] if str(row["k"]) in run["labels"]]
    rows = -(-len(ks) // 2)
    figure = Figure(figsize=(9, 2.1 * rows), layout="constrained")
    for axes in figure.subplots(rows, 2, squeeze=False).flat:
        axes.axis("off")
    for k, axes in zip(ks, figure.axes, strict=False):
        strips = draw_strips(networks, k, samples=SAMPLES, shifts=shifts, seed=SEED)
        N, C, _, H, W = strips.shape
        image = strips[:, :, 0].permute(0, 2, 1, 3).reshape(N * H, C * W)
        axes.imshow(image, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(f"{k}: {run['labels'][str(k)]}", fontsize=9, loc="left")
    end = folder.name.removeprefix(SHIPPED.name)
    figure.savefig(Path(__file__).with_name(f"named{end}.png"), dpi=110)


if __name__ == "__main__":
    main()
