"""Discover directions, by a preset with some fields changed."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from hdiscovery.config import DiscoveryConfig, from_preset, presets, run_config
from hdiscovery.run import RunFolder
from hdiscovery.world import World, joined, restarted

HELP = "discover directions"
EXAMPLES = (
    "hdiscovery train MNIST32-400-20-32-5 --out runs/a --K 8 --M 10",
    "hdiscovery train MNIST32-400-20-32-5 --out runs/a --resume --steps 4000",
    "torchrun --nproc-per-node 4 -m hdiscovery train CelebAHQ128-500-40-256-2 --dm dm.safetensors",
)
TAKES_FIELDS = True
FIELDS = DiscoveryConfig


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("preset", help=f"one of {', '.join(presets())}")
    parser.add_argument("--out", type=Path, help="run folder; by default runs/PRESET")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--device", default="auto", help="cpu or cuda; by default what there is")


def run(options: Namespace) -> None:
    """Train in a new folder, or go on in an old one."""
    changes = changed_fields(options.rest)
    out = options.out or Path("runs") / options.preset

    def opened() -> tuple[RunFolder, DiscoveryConfig]:
        # What torchrun starts again after a process died goes on; before its first checkpoint too.
        if options.resume or (restarted() and (out / "config.json").exists()):
            return resumed(out, changes)
        config = from_preset(options.preset, **changes)
        refuse_unfit(config, world)  # before there is a folder
        return RunFolder.create(out, asdict(config)), config

    with joined(options.device) as world:
        run, config = world.first(opened)
        train_in(run, config, world)


def refuse_unfit(config: DiscoveryConfig, world: World) -> None:
    """Check what of a config only shows outside it.

    Raises:
        FileNotFoundError: If there is no run to start from.
        ValueError: If its networks do not fit, or the batch cannot be shared out.
    """
    world.share(config.batch_size)
    if config.start_from:
        from hdiscovery.train import start_of

        start_of(config)


def changed_fields(rest: Sequence[str]) -> dict[str, Any]:
    """Parse ``--field value`` pairs by the config's own types; absent fields stay the preset's."""
    names = [word[2:].partition("=")[0].replace("-", "_") for word in rest if word[:2] == "--"]
    unknown = set(names) - {field.name for field in fields(DiscoveryConfig)}
    if unknown:
        known = ", ".join(field.name for field in fields(DiscoveryConfig))
        raise ValueError(f"unknown options {sorted(unknown)}; fields are: {known}.")
    given = tyro.cli(DiscoveryConfig, args=rest, prog="hdiscovery train PRESET")
    return {name: getattr(given, name) for name in names}


def resumed(out: Path, changes: dict[str, Any]) -> tuple[RunFolder, DiscoveryConfig]:
    """Return the run and its own config, changed where a run may change on its way."""
    run = RunFolder.open(out)
    config = run_config(run).changed(**changes)
    run.write_json("config.json", asdict(config))
    return run, config


def train_in(run: RunFolder, config: DiscoveryConfig, world: World | None = None) -> None:
    """Train in a run folder and show how far it is; rank 0 shows it."""
    from hdiscovery.train import train

    world = world or World()
    progress = partial(tqdm, desc="bank", disable=not world.leads)
    records = train(run, config, world, progress=progress)
    shown = ("L_G", "shift_error", "accuracy")
    for _ in bar(records, config.all_steps, shown, hidden=not world.leads):
        pass


def bar(
    records: Iterable[dict[str, Any]], total: int, shown: tuple[str, ...], *, hidden: bool = False
) -> Iterator[dict[str, Any]]:
    """Show a bar that a training's records move."""
    with tqdm(desc="training", total=total, disable=hidden) as line:
        for record in records:
            line.update(record["step"] + 1 - line.n)
            line.set_postfix({name: f"{record[name]:.3f}" for name in shown})
            yield record
