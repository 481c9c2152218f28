"""Measure how well directions are told apart."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hdiscovery.run import RunFolder

HELP = "measure how well directions are told apart"
EXAMPLES = ("hdiscovery evaluate runs/a --pairs 5000",)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--pairs", type=int, default=512, help="pairs to measure RCA on")


def run(options: Namespace) -> None:
    """Measure RCA, write it into the run's folder and print it."""
    print(json.dumps(measure(RunFolder.open(options.folder), options.pairs), indent=2))


def measure(run: RunFolder, pairs: int) -> dict[str, Any]:
    """Return RCA, written into the run's folder."""
    from hdiscovery.evaluate.rca import measure_rca
    from hdiscovery.train import open_run

    accuracy = asdict(measure_rca(open_run(run), pairs=pairs, progress=partial(tqdm, desc="RCA")))
    run.write_json("rca.json", accuracy)
    return accuracy
