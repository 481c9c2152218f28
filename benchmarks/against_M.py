"""Figure 4: memory against M for the methods that were run up to the largest M.

``python benchmarks/against_M.py results.json`` draws it again from the figures of
``throughput.py``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pareto import PEERS

BELOW = 0.9  # methods whose lines end closer than this share a label


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw bytes against M, one panel for each workload; names stand at the lines' ends."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["workload"] for row in content["memory"]))
    figure = Figure(figsize=(5.2 * len(names), 4.6), layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        _draw_panel([row for row in content["memory"] if row["workload"] == name], axes)
        axes.set(title=f"{name}, batch {_batch(content, name)}", xlabel="M, sampling steps")
    figure.axes[0].set_ylabel("peak live MiB")
    figure.suptitle("black: what users do otherwise; blue, dashed: CheckpointedChain", fontsize=9)
    figure.savefig(path, dpi=130)


def _draw_panel(rows: list[dict[str, Any]], axes: Any) -> None:
    ends: list[tuple[float, str]] = []
    last = max(row["M"] for row in rows)
    for way in [row["way"] for row in rows if row["M"] == last]:
        mine = sorted((r["M"], r["peak_bytes"] / 2**20) for r in rows if r["way"] == way)
        Ms, peaks = zip(*mine, strict=True)
        peer = way in PEERS
        axes.plot(Ms, peaks, marker=PEERS.get(way, "o"), ms=4, lw=1.2,
                  color="k" if peer else "C0", ls="-" if peer else "--")  # fmt: skip
        ends.append((peaks[-1], way))
    for peak, label in labels(ends):
        axes.annotate(label, (last, peak), xytext=(6, 0), textcoords="offset points",
                      va="center", fontsize=7)  # fmt: skip
    Ms = sorted({row["M"] for row in rows})
    axes.set(xscale="log", yscale="log", xlim=(Ms[0] * 0.9, last * 8))
    axes.set(xticks=Ms, xticklabels=Ms)
    bounds = axes.get_ylim()
    MiB = [n for power in range(6) for n in (10**power, 3 * 10**power) if n < bounds[1]]
    axes.set(yticks=MiB, yticklabels=MiB, ylim=bounds)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)


def labels(ends: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Return the heights of labels; lines that end close to each other share one label."""
    groups: list[tuple[float, list[str]]] = []
    for peak, way in sorted(ends, reverse=True):
        if groups and peak > BELOW * groups[-1][0]:
            groups[-1][1].append(way)
        else:
            groups.append((peak, [way]))
    return [(peak, _folded(names)) for peak, names in groups]


def _folded(names: list[str], width: int = 44) -> str:
    lines = [""]
    for name in names:
        if lines[-1] and len(lines[-1]) + len(name) > width:
            lines.append("")
        lines[-1] += ("; " if lines[-1] else "") + name
    return "\n".join(lines)


def _batch(content: dict[str, Any], name: str) -> int:
    return next(row["batch"] for row in content["memory"] if row["workload"] == name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path, help="JSON written by throughput.py")
    figures: Path = parser.parse_args().figures
    path = figures.with_name(f"{figures.stem}_against_M.png")
    draw(json.loads(figures.read_text()), path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
