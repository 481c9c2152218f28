"""Fit a new reconstructor to the pairs of a run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from hdiscovery.dm.autocast import Autocast
from hdiscovery.networks.reconstructor import ReconstructorName

HELP = "fit a reconstructor to all pairs in a run's buffer, and let the run go on with it"
EXAMPLES = (
    "hdiscovery refit runs/a",
    "hdiscovery refit runs/a --passes 16 --learning-rate 1e-3",
    "hdiscovery refit runs/a --warm-start                     # what it has learnt stays",
    "hdiscovery train MNIST32-demo --out runs/a --resume --steps 2000",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("folder", type=Path, metavar="RUN")
    add("--passes", type=int, default=8, help="how often each pair is seen")
    add("--batch-size", type=int, default=128, help="pairs an update")
    add("--learning-rate", type=float, default=3e-3, help="at the start; it falls to 0")
    add("--weight-decay", type=float, default=0.05, help="of AdamW")
    add("--label-smoothing", type=float, default=0.1, help="share of a target spread over all k")
    add("--warm-start", action="store_true", help="begin with the run's own, not with a new one")
    add(
        "--reconstructor",
        choices=get_args(ReconstructorName),
        help="kind of the new one; by default that of the run",
    )
    add(
        "--scale",
        type=float,
        default=1.0,
        help="make the directions so many times as strong before; their pairs serve on",
    )
    add("--autocast", choices=get_args(Autocast), default="off", help="precision of the fit")
    add("--seed", type=int, default=1)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")


def run(options: Namespace) -> None:
    """Fit, write the checkpoint, and say what the new reconstructor knows."""
    from hdiscovery.directions.run_folder import RunFolder
    from hdiscovery.dm.device import device_of
    from hdiscovery.refit import refit

    found = refit(
        RunFolder.open(options.folder), passes=options.passes, batch_size=options.batch_size,
        learning_rate=options.learning_rate, weight_decay=options.weight_decay,
        label_smoothing=options.label_smoothing, warm_start=options.warm_start,
        reconstructor=options.reconstructor, scale=options.scale, autocast=options.autocast,
        seed=options.seed, device=device_of(options.device), progress=partial(tqdm, desc="updates"),
    )  # fmt: skip
    print(
        f"knows k of {found.test.rca:.3f} ± {found.test.standard_error:.3f} of {found.test.pairs} "
        f"pairs held out, of {found.train.rca:.3f} of those it was trained on"
    )
