"""Train, evaluate and show, in minutes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from hdiscovery.commands.gallery import show, show_shipped
from hdiscovery.commands.train import resumed, train_in
from hdiscovery.directions.recipe import from_preset
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.autocast import fast_mode
from hdiscovery.train.world import World

HELP = "train, evaluate and show, in minutes"
EXAMPLES = ("hdiscovery demo", "hdiscovery demo --resume")
PRESET = "MNIST32-demo"


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--resume", action="store_true", help="continue the demo's run")


def run(options: Namespace) -> None:
    """Train, evaluate, show, and print the figures."""
    if options.resume:
        run, config = resumed(options.out, {}, World())
    else:
        config = from_preset(PRESET, autocast=fast_mode("cpu"))
        run = RunFolder.create(options.out, asdict(config))
    train_in(run, config)
    page, others = show(run, pairs=512), show_shipped(run.path)
    rca, last = run.read_json("rca.json"), list(run.records())[-10:]
    L_G = sum(record["L_G"] for record in last) / len(last)
    print(f"L_G over the last {len(last)} steps   {L_G:.3f}   (ln 2 = 0.693)")
    print(f"shift error                {rca['shift_error']:.2f}    (S/2 = {config.shift.S / 2:g})")
    rca_row = f"RCA on {rca['pairs']} pairs           {rca['rca']:.2f}"
    print(f"{rca_row}    (chance = {1 / config.shift.K:g})")
    print(f"open {page.resolve()}")
    for other in others:
        print(f"and, of a longer run, {other.resolve()}")
