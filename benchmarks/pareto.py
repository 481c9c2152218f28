"""The Pareto picture: the work that each method pays for saved memory, and the smallest possible.

``python benchmarks/pareto.py results.json`` draws it again from the figures of ``throughput.py``.

The frontier consists of plans: plans that keep all nodes and the last k graphs (2M - k
evaluations), and binomial plans with s nodes. If steps differ in cost, better plans exist. Work is
counted exactly, in floating-point operations. Micro-batches and checkpointing inside the model
change the step, so the frontier does not apply to them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from measured import ratio

PEERS = {"plain loop": "s", "checkpoint": "^", "model's own": "v", "as published": "D"}
OTHER_STEP = ("model's own", "sliced")  # methods that change the step


def of_frontier(content: dict[str, Any], row: dict[str, Any]) -> float | None:
    """Return a method's memory divided by the smallest memory of any plan with at most its work.

    Returns:
        1 on the frontier, which is predicted without the networks of the loss; None for methods
        that change the step.
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
    """Draw memory against work, and memory against time, with one row for each workload."""
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
