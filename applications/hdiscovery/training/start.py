"""Begin a run in a new folder or go on with one; refuse what cannot be trained before it begins."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hdiscovery.directions.config import DiscoveryConfig, run_config
from hdiscovery.directions.recipe import refuse_no_model
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.run_networks import refuse_model
from hdiscovery.directions.saved import is_published
from hdiscovery.dm.open import load_dm
from hdiscovery.training.start_from import start_of
from hdiscovery.training.world import World, launcher, restarted

BEGUN_BY = "begun_by.txt"  # in a run's folder


def begun(out: Path, config: DiscoveryConfig, world: World) -> tuple[RunFolder, DiscoveryConfig]:
    """Make a new run's folder.

    Raises:
        FileExistsError: If the folder holds a run.
        FileNotFoundError: If there is no such diffusion model, or no run to start from.
        ValueError: If networks do not fit, or the batch cannot be shared out.
    """
    refuse_no_model(config, "The recipe")
    refuse_unfit(config, world)  # before there is a folder
    run = RunFolder.create(out, asdict(config))
    run.write_text(BEGUN_BY, launcher())
    return run, config


def resumed(out: Path, changes: dict[str, Any], world: World) -> tuple[RunFolder, DiscoveryConfig]:
    """Return the run and its own config, changed where a run may change on its way.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If it is a published run, a change is none that a run can make, or the run does
            not fit the processes that are there.
    """
    run = RunFolder.open(out)
    if is_published(run):
        raise ValueError(
            f"{out} is a published run: it has no checkpoint to go on from. Begin a new run with "
            f"its networks, by `--start-from {out}` and another `--out`."
        )
    config = run_config(run).changed(**changes)
    refuse_processes(config, world)
    return run, config


def goes_on(out: Path) -> bool:
    """Return whether torchrun started this process again after one died, and began this run.

    Such a run is continued, also before its first checkpoint.
    """
    return restarted() and begun_by(out) == launcher()


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
    refuse_processes(config, world)
    dm = load_dm(config.model.dm)
    refuse_model(config, dm)
    if config.run.start_from:
        start_of(config, dm)


def refuse_processes(config: DiscoveryConfig, world: World) -> None:
    """Check that a run fits the processes that are there.

    Raises:
        ValueError: If the batch cannot be shared out, or the model cannot.
    """
    world.share(config.training.batch_size)
    if config.model.shard_dm and world.size == 1:
        raise ValueError(
            "`shard_dm` shards the diffusion model over several processes, but there is one. "
            "Start them with torchrun, or pass `--no-shard-dm`."
        )
