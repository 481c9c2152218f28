"""Discover directions, by a preset with some fields changed."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields, make_dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import tyro
from tqdm import tqdm

from hdiscovery.directions.config import DiscoveryConfig, from_preset, presets, run_config
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.train.world import World, joined, launcher, restarted

HELP = "discover directions"
EXAMPLES = (
    "hdiscovery train MNIST32-400-20-32-5 --out runs/a --K 8 --M 10",
    "hdiscovery train MNIST32-400-20-32-5 --out runs/a --resume --steps 4000",
    "torchrun --nproc-per-node 4 -m hdiscovery train CelebAHQ128-500-40-256-2 --dm dm.safetensors",
)
TAKES_FIELDS = True
BEGUN_BY = "begun_by.txt"  # in a run's folder
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
        if options.resume or (restarted() and begun_by(out) == launcher()):
            return resumed(out, changes, world)
        config = from_preset(options.preset, **changes)
        refuse_unfit(config, world)  # before there is a folder
        run = RunFolder.create(out, asdict(config))
        run.write_text(BEGUN_BY, launcher())
        return run, config

    with joined(options.device) as world:
        run, config = world.first(opened)
        train_in(run, config, world)


def begun_by(out: Path) -> str | None:
    """Return which launcher began the run in a folder, None if there is none."""
    path = out / BEGUN_BY
    return path.read_text() if path.is_file() else None


def refuse_unfit(config: DiscoveryConfig, world: World) -> None:
    """Check what of a config only shows outside it.

    Raises:
        FileNotFoundError: If there is no such diffusion model, or no run to start from.
        ValueError: If networks do not fit, or the batch cannot be shared out.
    """
    from hdiscovery.directions.discovery import refuse_model
    from hdiscovery.dm.open import load_dm

    refuse_processes(config, world)
    refuse_model(config, load_dm(config.dm))
    if config.start_from:
        from hdiscovery.train.loop import start_of

        start_of(config)


def refuse_processes(config: DiscoveryConfig, world: World) -> None:
    """Check that a run fits the processes that are there.

    Raises:
        ValueError: If the batch cannot be shared out, or the model cannot.
    """
    world.share(config.batch_size)
    if config.shard_dm and world.size == 1:
        raise ValueError(
            "`shard_dm` shares the diffusion model out over several processes, but there is one. "
            "Start them with torchrun, or pass `--no-shard-dm`."
        )


def changed_fields(rest: Sequence[str]) -> dict[str, Any]:
    """Parse ``--field value`` pairs by the config's own types; absent fields stay the preset's."""
    names = [word[2:].partition("=")[0].replace("-", "_") for word in rest if word[:2] == "--"]
    switches = {f"no_{field.name}": field.name for field in fields(DiscoveryConfig)
                if field.type == "bool"}  # fmt: skip
    names = [switches.get(name, name) for name in names]
    unknown = set(names) - {field.name for field in fields(DiscoveryConfig)}
    if unknown:
        known = ", ".join(field.name for field in fields(DiscoveryConfig))
        raise ValueError(f"unknown options {sorted(unknown)}; fields are: {known}.")
    # What goes with what is checked where the preset is known: it is not the default's business.
    hints = get_type_hints(DiscoveryConfig)
    unchecked = make_dataclass(
        "Fields",
        [(field.name, hints[field.name], field.default) for field in fields(DiscoveryConfig)],
    )
    given: Any = tyro.cli(unchecked, args=rest, prog="hdiscovery train PRESET")
    return {name: getattr(given, name) for name in names}


def resumed(out: Path, changes: dict[str, Any], world: World) -> tuple[RunFolder, DiscoveryConfig]:
    """Return the run and its own config, changed where a run may change on its way.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is a published one, or does not fit the processes that are there.
    """
    from hdiscovery.directions.saved import is_published

    run = RunFolder.open(out)
    if is_published(run):
        raise ValueError(
            f"{out} is a published run: it has no checkpoint to go on from. Begin a new run with "
            f"its networks, by `--start-from {out}` and another `--out`."
        )
    config = run_config(run).changed(**changes)
    refuse_processes(config, world)
    run.write_json("config.json", asdict(config))
    return run, config


def train_in(run: RunFolder, config: DiscoveryConfig, world: World | None = None) -> None:
    """Train in a run folder and show how far it is; rank 0 shows it."""
    from hdiscovery.train.loop import train

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
