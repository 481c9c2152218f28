"""The Pareto picture: what each way pays for the memory that it saves, and the least one could pay.

``python benchmarks/pareto.py results.json`` draws it again from the figures of ``throughput.py``.

The frontier is that of plans: of the last k graphs beside all nodes, 2M - k evaluations, and
of s nodes, the binomial number. Steps of unequal cost allow better ones. Work is exact, in
floating-point operations; slices and checkpointing inside of the model make the step another one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from measured import ratio

PEERS = {"plain loop": "s", "checkpoint": "^", "model's own": "v", "as published": "D"}
OTHER_STEP = ("model's own", "sliced")  # ways whose step is not that of the frontier


def of_frontier(content: dict[str, Any], row: dict[str, Any]) -> float | None:
    """Return a way's memory as a ratio of the least in which its work can be done.

    Returns:
        1 is the frontier, which is predicted and knows nothing of the loss; None for ways that
        change the step.
    """
    if any(word in row["way"] for word in OTHER_STEP):
        return None
    layers = "frozen" if "frozen" in row["way"] else "torch's"
    enough = [point["bytes"] for point in content["frontier"]
              if (point["workload"], point["M"], point["layers"])
              == (row["workload"], row["M"], layers)
              and point["flops"] <= 1.01 * row["flops"]]  # fmt: skip
    return row["peak_bytes"] / min(enough) if enough else None


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw memory against work, and memory against time, one row a workload."""
    from matplotlib.figure import Figure

    timed = content["timing"]
    figure = Figure(figsize=(10, 3.3 * len(timed)), layout="constrained")
    grid = figure.subplots(len(timed), 2, squeeze=False, sharex="row")
    for row, (by_work, by_time) in zip(timed, grid, strict=True):
        _draw_row(content, row, by_work, by_time)
    shown: dict[str, Any] = {}
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=130)


def _draw_row(content: dict[str, Any], timed: dict[str, Any], by_work: Any, by_time: Any) -> None:
    name, M = timed["workload"], timed["M"]
    rows = {row["way"]: row for row in content["memory"]
            if (row["workload"], row["M"]) == (name, M)}  # fmt: skip
    plain = rows["plain loop"]
    for layers, style in (("torch's", "-"), ("frozen", "--")):
        points = [p for p in content["frontier"]
                  if (p["workload"], p["M"], p["layers"]) == (name, M, layers)]  # fmt: skip
        if points:
            label = "frontier" if layers == "torch's" else "frontier, frozen layers"
            by_work.step([p["bytes"] / plain["peak_bytes"] for p in points],
                         [p["flops"] / plain["flops"] for p in points],
                         style, where="post", color="0.6", lw=1, label=label)  # fmt: skip
    chains = [way for way in dict.fromkeys(row["way"] for row in content["memory"])
              if way not in PEERS]  # fmt: skip
    for way, row in rows.items():
        memory = row["peak_bytes"] / plain["peak_bytes"]
        how = {"marker": PEERS.get(way, "o"), "ls": "", "label": way,
               "color": "k" if way in PEERS else f"C{chains.index(way)}"}  # fmt: skip
        by_work.plot(memory, row["flops"] / plain["flops"], **how)
        by_time.plot(memory, ratio(timed["seconds"], way, "plain loop"), **how)
    for axes, what in ((by_work, "work"), (by_time, "time")):
        axes.set(xlabel="memory, of the plain loop's", ylabel=f"{what}, of the plain loop's",
                 title=f"{name}, M = {M}", xlim=(0, 1.05))  # fmt: skip
        axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path, help="JSON written by throughput.py")
    options = parser.parse_args()
    draw(json.loads(options.figures.read_text()), options.figures.with_suffix(".png"))
    print(f"wrote {options.figures.with_suffix('.png')}")


if __name__ == "__main__":
    main()
