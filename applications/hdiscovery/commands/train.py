"""Discover directions, by a preset with some fields changed."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from hdiscovery.directions.config import DiscoveryConfig, run_config
from hdiscovery.directions.recipe import (
    as_toml,
    fields_of,
    preset,
    presets,
    read_recipe,
    refuse_no_model,
)
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.flags import read_flags
from hdiscovery.train.world import World, joined, launcher, restarted

HELP = "discover directions"
EXAMPLES = (
    "hdiscovery train MNIST32-400-20-32-5 --out runs/a --K 8 --M 10",
    "hdiscovery train MNIST32-400-20-32-5 --out runs/a --resume --steps 4000",
    "hdiscovery train MNIST32-400-20-32-5 --K 8 --dry-run > recipe.toml",
    "hdiscovery train --config recipe.toml --out runs/b",
    "torchrun --nproc-per-node 4 -m hdiscovery train CelebAHQ128-500-40-256-2 --dm dm.safetensors",
)
TAKES_FIELDS = OWN_HELP = True
BEGUN_BY = "begun_by.txt"  # in a run's folder


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Discover directions, by a preset or a recipe with some fields changed.

    Attributes:
        preset: Name of a preset: MNIST32-400-20-32-5, Anime64-400-40-128-2,
            CelebAHQ128-500-40-256-2, AFHQ128-400-40-256-2 or MNIST32-demo.
        config: A recipe of your own, a TOML file, in place of a preset.
        out: Run folder; by default runs/ and the name of the preset or the recipe.
        resume: Continue the run in the folder. Fields that are given change; a recipe's fields
            count as given, a preset's do not.
        dry_run: Print the config as a recipe, and train nothing.
        device: auto, cpu or cuda.
    """

    preset: tyro.conf.Positional[str | None] = None
    config: Path | None = None
    out: Path | None = None
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.preset is not None and self.config is not None:
            raise ValueError(
                f"Both a preset, {self.preset!r}, and `--config {self.config}` are given. Leave "
                "one of them out."
            )

    def start(self) -> DiscoveryConfig:
        """Return the config that a new run starts from, before fields are changed.

        Raises:
            FileNotFoundError: If the recipe is not a file.
            ValueError: If there is no such preset, or the recipe has an unknown or a wrong field.
        """
        if self.config is not None:
            return read_recipe(self.config)
        if self.preset is None:
            raise ValueError(
                "Neither a preset nor `--config FILE` is given. The presets are: "
                f"{', '.join(presets())}."
            )
        return preset(self.preset)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / (self.preset or Path(self.config or "run").stem)


def add_options(parser: ArgumentParser) -> None:
    """Declare nothing: the options are those of `TrainOptions` and the fields of the config."""
    parser.set_defaults(resume=False)


def run(options: Namespace) -> None:
    """Train in a new folder, or go on in an old one."""
    own, changes = read_flags(
        TrainOptions, options.rest, command="train", examples=EXAMPLES,
        shown=lambda own: own.start() if own.preset or own.config else DiscoveryConfig(),
    )  # fmt: skip
    resumes = own.resume and own.out is not None
    start = DiscoveryConfig() if resumes and not (own.preset or own.config) else own.start()
    if own.dry_run:
        config = start.replace(**changes)
        print(as_toml(config))
        return
    with joined(own.device) as world:
        run, config = world.first(partial(opened, own, start, changes, world))
        train_in(run, config, world)


def opened(
    own: TrainOptions, start: DiscoveryConfig, changes: dict[str, Any], world: World
) -> tuple[RunFolder, DiscoveryConfig]:
    """Return a new run, or the one in the folder if it is continued.

    A run that torchrun starts again after a process died is continued, also before its first
    checkpoint.
    """
    if own.resume or (restarted() and begun_by(own.folder) == launcher()):
        given = {**(fields_of(own.config) if own.config else {}), **changes}
        return resumed(own.folder, given, world)
    config = start.replace(**changes)
    refuse_no_model(config, f"The recipe {own.preset or own.config}")
    refuse_unfit(config, world)  # before there is a folder
    run = RunFolder.create(own.folder, asdict(config))
    run.write_text(BEGUN_BY, launcher())
    return run, config


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
    refuse_model(config, load_dm(config.model.dm))
    if config.run.start_from:
        from hdiscovery.train.loop import start_of

        start_of(config)


def refuse_processes(config: DiscoveryConfig, world: World) -> None:
    """Check that a run fits the processes that are there.

    Raises:
        ValueError: If the batch cannot be shared out, or the model cannot.
    """
    world.share(config.training.batch_size)
    if config.model.shard_dm and world.size == 1:
        raise ValueError(
            "`shard_dm` shares the diffusion model out over several processes, but there is one. "
            "Start them with torchrun, or pass `--no-shard-dm`."
        )


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
