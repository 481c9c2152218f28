"""Measure what was tried: ``python docs/digits/tried.py runs/mnist32`` writes tried.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
LAST = 50  # steps that a mean is over
MEANS = ("accuracy", "cross_entropy", "shift_error", "L_G", "seconds")


def measured(row: dict[str, Any], runs: Path) -> dict[str, Any]:
    """Return a row with the means over the last steps of its part of a run."""
    lines = (runs / row["run"] / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    part = records[row.get("from", 0) : row.get("to")]
    means = {name: fmean(record[name] for record in part[-LAST:]) for name in MEANS}
    return {**row, "steps": [part[0]["step"], part[-1]["step"] + 1], "means": means}


def table(rows: list[dict[str, Any]]) -> str:
    """Return what was tried as a Markdown table."""
    lines = [
        "| run | what | steps | s a step | accuracy | cross entropy | shift error | L_G | seen |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        first, end = row["steps"]
        m = row["means"]
        lines.append(
            f"| {row['run']} | {row['what']} | {first} … {end} | {m['seconds']:.1f} "
            f"| {m['accuracy']:.2f} | {m['cross_entropy']:.2f} | {m['shift_error']:.2f} "
            f"| {m['L_G']:.3f} | {row['saw']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure every row again; if a row's run no longer exists, the row keeps its values."""
    runs, out = Path(sys.argv[1]), HERE / "tried.json"
    before = {(row["run"], row.get("from", 0)): row for row in _read(out)}
    rows = []
    for row in tomllib.loads((HERE / "tried.toml").read_text())["row"]:
        if (runs / row["run"]).is_dir():
            rows.append(measured(row, runs))
        else:
            rows.append({**before[row["run"], row.get("from", 0)], **row})
    out.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


if __name__ == "__main__":
    main()
