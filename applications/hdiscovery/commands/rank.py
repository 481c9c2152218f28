"""Rank a run's directions without labels."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from hdiscovery.evaluate.ranking import Ranking

HELP = "rank a run's directions without labels"
EXAMPLES = (
    "hdiscovery rank runs/a",
    "hdiscovery rank runs/a --samples 32 --fresh-pairs 4096   # by a reconstructor of its own",
    "hdiscovery gallery runs/a                                # in this order",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("folder", type=Path, metavar="RUN")
    add("--samples", type=int, default=16, help="samples each direction is tried on")
    add("--shifts", type=int, default=9, help="shifts of each of them, odd")
    add("--references", type=int, default=128, help="unshifted samples to compare those with")
    add(
        "--features",
        default="unet",
        metavar="NET",
        help="what looks at the images: unet, digits, inception, or a .pt or .pt2 file",
    )
    add("--data", type=Path, help="folder of MNIST/raw, for the feature net digits")
    add(
        "--classifier",
        type=Path,
        metavar="FILE",
        help="where the feature net digits is kept; by default in --data",
    )
    add("--twins", type=float, default=0.9, metavar="COS", help="least |cosine| of twins")
    add(
        "--fresh-pairs",
        type=int,
        metavar="N",
        help="train a new reconstructor on N pairs, and ask that one instead of the run's own",
    )
    add("--fresh-steps", type=int, default=2000, help="its updates")
    add("--batch-size", type=int, default=64, help="samples at once")
    add(
        "--compile",
        action="store_true",
        help="let torch.compile make the UNet anew: minutes for each size of batch, then faster",
    )
    add("--seed", type=int, default=2)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")  # fmt: skip


def run(options: Namespace) -> None:
    """Rank, write ``ranking.json`` into the run's folder, and print the order."""
    from hdiscovery.directions.saved import open_networks
    from hdiscovery.directions.shipped import own_run
    from hdiscovery.directions.subject import of_run
    from hdiscovery.dm.compiled import compile_parts
    from hdiscovery.dm.device import device_of
    from hdiscovery.evaluate.features import feature_net
    from hdiscovery.evaluate.fresh import train_fresh
    from hdiscovery.evaluate.ranking import rank
    from hdiscovery.evaluate.sweep import sweeps

    if options.batch_size < 1:
        raise ValueError(f"`--batch-size` must be at least 1, got {options.batch_size}.")
    run = own_run(options.folder)
    discovery, step = open_networks(run, device=device_of(options.device))
    if options.compile:
        compile_parts(discovery.dm.unet)
    subject, R = of_run(discovery), discovery.R
    net = feature_net(options.features, subject.dm, data=options.data, cache=options.classifier,
                      progress=partial(tqdm, desc="classifier of digits"))  # fmt: skip
    found = sweeps(
        subject, num_samples=options.samples, num_shifts=options.shifts, seed=options.seed,
        batch_size=options.batch_size, progress=partial(tqdm, desc="directions"),
    )  # fmt: skip
    if options.fresh_pairs is not None:
        R = train_fresh(
            subject, train_pairs=options.fresh_pairs, test_pairs=max(options.fresh_pairs // 4, 1),
            steps=options.fresh_steps, seed=options.seed, sampled_at_once=options.batch_size,
            progress=partial(tqdm, desc="pairs for a fresh R"),
        ).R  # fmt: skip
    ranking = rank(
        subject, R, net, found, references=options.references, threshold=options.twins,
        seed=options.seed, batch_size=options.batch_size,
    )  # fmt: skip
    run.write_json("ranking.json", ranking.content(step))
    print(listed(ranking))


def listed(ranking: Ranking) -> str:
    """Return a ranking as text, a line a direction."""
    from hdiscovery.evaluate.ranking import MARKS

    lines = [f"{'k':>4}  {'score':>5}  " + "  ".join(MARKS)]
    for r in ranking.directions:
        cells = "  ".join(f"{getattr(r, mark):{len(mark)}.2f}" for mark in MARKS)
        twin = ""
        if r.twin_of is not None:
            k, sign = r.twin_of
            twin = f"  {'twin' if sign > 0 else 'mirror twin'} of {k}"
        lines.append(f"{r.k:4d}  {r.score:5.2f}  {cells}{twin}")
    return "\n".join(lines)
