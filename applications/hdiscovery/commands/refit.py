"""Fit a new reconstructor to the pairs of a run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from tqdm import tqdm

HELP = "fit a new reconstructor to the pairs in a run's buffer, and let the run go on with it"
EXAMPLES = (
    "hdiscovery refit runs/a",
    "hdiscovery refit runs/a --passes 16 --learning-rate 1e-3",
    "hdiscovery train MNIST32-demo --out runs/a --resume --steps 2000",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("folder", type=Path, metavar="RUN")
    add("--passes", type=int, default=8, help="how often each pair is seen")
    add("--batch-size", type=int, default=64, help="pairs an update")
    add("--learning-rate", type=float, default=3e-3, help="at the start; it falls to 0")
    add("--seed", type=int, default=1)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")


def run(options: Namespace) -> None:
    """Fit, write the checkpoint, and say what the new reconstructor knows."""
    from hdiscovery.device import device_of
    from hdiscovery.refit import refit
    from hdiscovery.run import RunFolder

    found = refit(
        RunFolder.open(options.folder), passes=options.passes, batch_size=options.batch_size,
        learning_rate=options.learning_rate, seed=options.seed,
        device=device_of(options.device), progress=partial(tqdm, desc="updates"),
    )  # fmt: skip
    print(
        f"knows k of {found.test.rca:.3f} ± {found.test.standard_error:.3f} of {found.test.pairs} "
        f"pairs held out, of {found.train.rca:.3f} of those it was trained on"
    )
