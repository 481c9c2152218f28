"""Fail if memory, work or evaluations exceed the committed results. Time is not checked.

``python benchmarks/check.py`` runs every method again on fake tensors, with the fewest steps in
``results/cpu/throughput.json``. The counts are the same on every machine and under every load.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from measured import results
from throughput import memory

TOLERANCES = {"peak_bytes": 0.01, "evaluations": 0.0, "flops": 0.001}


def rows_to_check(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the committed readings at the fewest steps of each workload."""
    fewest: dict[str, int] = {}
    for row in content["memory"]:
        fewest[row["workload"]] = min(row["M"], fewest.get(row["workload"], row["M"]))
    return [row for row in content["memory"] if row["M"] == fewest[row["workload"]]]


def complaints(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return one line for each value that is larger or smaller than before."""
    found = []
    for what, tolerance in TOLERANCES.items():
        if abs(now[what] - before[what]) > tolerance * before[what]:
            found.append(
                f"{before['workload']}, {before['way']}, M = {before['M']}: {what} was "
                f"{before[what]:,g} and is {now[what]:,g}."
            )
    return found


def check(rows: Iterable[dict[str, Any]], size: str = "bench") -> list[str]:
    """Return complaints about all rows, after measuring them again."""
    found = []
    for row in rows:
        job = row["workload"], row["way"], row["M"], row["batch"]
        found += complaints(row, memory(*job, "fake", size))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path, nargs="?", default=results("throughput"))
    options = parser.parse_args()
    rows = rows_to_check(json.loads(options.figures.read_text()))
    found = check(rows)
    if found:
        raise SystemExit(
            "\n".join(found)
            + "\nWhere that is meant, measure anew: python benchmarks/throughput.py"
        )
    print(f"{len(rows)} readings are as committed.")


if __name__ == "__main__":
    main()
