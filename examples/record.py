"""The record of an example: its picture, its figures, and the table for the docs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"


class Record:
    """One run of an example: its options, its clock, and where its picture and figures go.

    Args:
        file: The example's ``__file__``.
        doc: Its docstring, shown by ``--help``.

    Attributes:
        quick: Whether ``--quick`` was passed.
    """

    def __init__(self, file: str, doc: str) -> None:
        self._file = Path(file)
        parser = argparse.ArgumentParser(
            description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
        parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
        options = parser.parse_args()
        self.quick: bool = options.quick
        self._out: Path = options.out
        self._started = time.perf_counter()

    def keep(self, figure: Figure, measured: dict[str, dict[str, float]]) -> None:
        """Write ``NAME.png`` and ``NAME.json``, and print the table of figures.

        Args:
            figure: The picture.
            measured: A row of figures for each measured quantity, by column.
        """
        content = {
            "command": " ".join(["python", f"examples/{self._file.name}", *sys.argv[1:]]),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "date": time.strftime("%Y-%m-%d"),
            "seconds": round(time.perf_counter() - self._started),
            "measured": {
                row: {column: float(f"{value:.4g}") for column, value in cells.items()}
                for row, cells in measured.items()
            },
        }
        self._out.mkdir(parents=True, exist_ok=True)
        figure.savefig(self._out / f"{self._file.stem}.png", dpi=100)
        path = self._out / f"{self._file.stem}.json"
        path.write_text(json.dumps(content, indent=2) + "\n")
        print(f"{table(content)}\n\nwrote {path}")


def table(content: dict[str, Any]) -> str:
    """Return the figures of one run as a Markdown table, with the command that made them."""
    lines = ["| measured | |", "|---|---|"]
    for row, cells in content["measured"].items():
        lines.append(f"| {row} | {', '.join(f'{where}: {v:g}' for where, v in cells.items())} |")
    made = (
        f"Written by `{content['command']}` on {content['date']} in {content['seconds']} s: "
        f"{content['threads']} threads, torch {content['torch']}."
    )
    return "\n".join([*lines, "", made])


def write_tables(folder: Path) -> None:
    """Write the table of every example with results to ``NAME.md`` in a folder, for the docs."""
    for path in RESULTS.glob("plot_*.json"):
        content = json.loads(path.read_text())
        if "measured" in content:
            (folder / f"{path.stem}.md").write_text(table(content) + "\n")
