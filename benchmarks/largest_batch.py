"""The largest batch of each method under a limit on live bytes, and its speed at that batch.

Run ``python benchmarks/largest_batch.py``. The batch is found on fake tensors, which have the peaks
of real tensors, and then timed. If speed grows with the batch, as on a GPU, saved memory becomes
speed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from measured import apart, default_device, each_apart, in_turn, note, results, save
from throughput import memory
from ways import WAYS
from workloads import WORKLOADS

from chainograd.plans.budget import parse_bytes

COMPARED = ("plain loop", "checkpoint", "nodes", "nodes, frozen")
# If layers are frozen, nodes without frozen layers have the same batch as checkpointing.


def largest(peak: Callable[[int], int], cap: int, most: int) -> int:
    """Return the largest batch up to ``most`` whose peak is within a cap; 0 if no batch fits.

    Peaks grow almost linearly with the batch: two peaks give a guess, and others confirm it.
    """
    low, high = 0, most + 1  # low fits, high does not
    known: dict[int, int] = {}
    guess = 2
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        known[guess] = peak(guess)
        low, high = (guess, high) if known[guess] <= cap else (low, guess)
        if len(known) == 1:
            guess = 2 * guess
            continue
        a, b = sorted(known, key=lambda n: abs(known[n] - cap))[:2]
        each = max((known[a] - known[b]) / (a - b), 1.0)
        guess = int(a + (cap - known[a]) / each)
        if guess <= low:
            guess = low + 1
    return low


def fitting(workload: str, way: str, M: int, cap: int, most: int, size: str) -> int:
    """Return the largest batch of a method, from peaks on fake tensors."""

    def peak(batch: int) -> int:
        return memory(workload, way, M, batch, "fake", size)["peak_bytes"]

    return largest(peak, cap, most)


def seconds(
    workload: str, way: str, M: int, batch: int, pairs: int, device: str, size: str
) -> list[float]:
    """Return the seconds of runs with a batch."""
    w = WORKLOADS[workload](M, batch, device, size)
    run = WAYS[way].prepared(w)

    def fresh() -> None:
        w.forget()
        run()

    return in_turn({way: fresh}, pairs, device)[way]


def measure(
    workload: str, M: int, cap: int, most: int, pairs: int, device: str, size: str = "bench"
) -> list[dict[str, Any]]:
    """Return the largest batch of every method and its seconds."""
    rows = []
    fits = WORKLOADS[workload](1, 2, "cpu", size)
    ways = [name for name in COMPARED
            if WAYS[name].fits(fits) and not (name == "nodes" and fits.frozen)]  # fmt: skip
    batches = each_apart(fitting, [(workload, way, M, cap, most, size) for way in ways], "fake")
    for way, batch in zip(ways, batches, strict=True):
        job = workload, way, M, batch, pairs, device, size
        took = apart(seconds, *job) if batch else []
        rows.append({"workload": workload, "way": way, "M": M, "cap": cap, "batch": batch,
                     "most": most, "seconds": took})  # fmt: skip
        note(f"{workload}, {way}: batch {batch}")
    return rows


def table(content: dict[str, Any]) -> str:
    """Return a Markdown table; a plus marks a batch at which the search stopped."""
    cap, M = content["rows"][0]["cap"], content["rows"][0]["M"]
    lines = [f"| {cap / 2**20:.0f} MiB, M = {M} | way | batch | images/s |", "|---|---|---:|---:|"]
    for row in content["rows"]:
        speed = f"{row['batch'] / median(row['seconds']):.2f}" if row["seconds"] else ""
        more = "+" if row["batch"] == row["most"] else ""
        lines.append(f"| {row['workload']} | {row['way']} | {row['batch']}{more} | {speed} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--cap", default="128MiB", help="live bytes, such as 256MiB or 20GiB")
    parser.add_argument("--M", type=int, default=5)
    parser.add_argument("--most", type=int, default=32, help="batch at which the search ends")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cap, rows = parse_bytes(options.cap), []
    for name in options.workloads:
        rows += measure(name, options.M, cap, options.most, options.pairs, options.device)
    out = options.out or results("largest_batch", options.device)
    print(table(save(out, options.device, {"rows": rows})))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
