"""Discover directions, by a preset with some fields changed."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from hdiscovery.config import DiscoveryConfig, from_preset, presets, run_config
from hdiscovery.run import RunFolder

HELP = "discover directions"
EXAMPLES = (
    "hdiscovery train MNIST32-400-20-32-5 --out runs/a --K 8 --M 10",
    "hdiscovery train MNIST32-400-20-32-5 --out runs/a --resume --steps 4000",
)
TAKES_FIELDS = True  # those of the preset


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("preset", help=f"one of {', '.join(presets())}")
    parser.add_argument("--out", type=Path, help="run folder; by default runs/PRESET")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")


def run(options: Namespace) -> None:
    """Train in a new folder, or go on in an old one."""
    changes = changed_fields(options.rest)
    out = options.out or Path("runs") / options.preset
    if options.resume:
        train_in(*resumed(out, changes))
    else:
        config = from_preset(options.preset, **changes)
        train_in(RunFolder.create(out, asdict(config)), config)


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


def train_in(run: RunFolder, config: DiscoveryConfig) -> None:
    """Train in a run folder and show how far it is."""
    from hdiscovery.train import train

    for _ in bar(train(run, config), config.steps, ("L_G", "shift_error", "accuracy")):
        pass


def bar(
    records: Iterable[dict[str, Any]], total: int, shown: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Show a bar that a training's records move."""
    with tqdm(desc="training", total=total) as line:
        for record in records:
            line.update(record["step"] + 1 - line.n)
            line.set_postfix({name: f"{record[name]:.3f}" for name in shown})
            yield record
