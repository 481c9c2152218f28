"""Trains in a run folder, from its last checkpoint on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.history import KnownModel, enter_start, open_model
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.dm.compiled import compile_parts
from hdiscovery.training.bank import Progress
from hdiscovery.training.bank_file import open_bank
from hdiscovery.training.checkpoint import begin_with, refuse_not_finite, restore, state
from hdiscovery.training.draws import drawn, seeded
from hdiscovery.training.start_from import start_of
from hdiscovery.training.trainer import Trainer
from hdiscovery.training.world import World


def train(
    run: RunFolder,
    config: DiscoveryConfig,
    world: World | None = None,
    *,
    progress: Progress = iter,
) -> Iterator[dict[str, Any]]:
    """Train in a run folder, from its last checkpoint if it has one; yield a record per step.

    On a CPU a run that was stopped at any moment and resumed ends with the same weights, bit for
    bit, as a run that was not stopped.

    Args:
        run: The folder; rank 0 writes into it.
        config: How the run is made.
        world: The processes that train together; by default this is the only one, on the CPU.
        progress: Wraps the loop that fills a bank.

    Raises:
        FloatingPointError: If a loss is not finite; the last good checkpoint is kept.
        ValueError: If the batch cannot be shared out, the diffusion model is not the run's, or all
            checkpoints are damaged.
    """
    world = world or World()
    share = world.share(config.training.batch_size)
    networks, model = build(run, config, world)
    bank = open_bank(run.path, networks, world, progress=progress)
    trainer = Trainer(networks, world)
    first = resume(run, trainer, model)
    for step in range(first, config.all_steps):
        started = time.perf_counter()
        saves = (step + 1) % config.run.save_every == 0 or step + 1 == config.all_steps
        with not_finite_at(step), seeded(config.run.seed, step, world.rank, world.device):
            terms = train_step(trainer, step, drawn(networks, share, bank, step, world))
            if saves:
                refuse_not_finite(trainer)
        record = {"step": step, **terms, "seconds": time.perf_counter() - started}
        log(run, world, record)
        if saves:
            save(run, trainer, step + 1)
        yield record


def build(run: RunFolder, config: DiscoveryConfig, world: World) -> tuple[RunNetworks, KnownModel]:
    """Load the run's diffusion model, build the networks, and return which model it is."""
    dm = open_model(run, config, device=world.device)
    model = KnownModel.of(config, dm)  # before sharding, which takes the weights apart
    networks = RunNetworks.build(config, dm, device=world.device)
    if config.model.shard_dm:
        from hdiscovery.training.sharding import shard

        shard(dm.unet, world)
    if config.model.compile:
        compile_parts(dm.unet)
    return networks, model


def resume(run: RunFolder, trainer: Trainer, model: KnownModel) -> int:
    """Take up the run where it stands, enter that into its history, and return the next step."""
    config, world = trainer.config, trainer.world
    checkpoint = run.load_checkpoint()
    first = restore(trainer, checkpoint) if checkpoint else 0
    if checkpoint is None and config.run.start_from:
        begin_with(trainer, start_of(config, trainer.networks.dm))
    if world.leads:
        run.keep_records(before=first)
        enter_start(run, config, model, step=first, processes=world.size)
    return first


def train_step(trainer: Trainer, step: int, batch: Any) -> dict[str, float]:
    """Do a step of Algorithm 1 or, after those, a step in which only R trains."""
    if step < trainer.config.training.steps:
        return trainer.step(*batch)
    return trainer.settle(*batch, rate=trainer.config.settle_rate(step))


def log(run: RunFolder, world: World, record: dict[str, Any]) -> None:
    """Append a step's record."""
    if world.leads:
        run.append_record(record)


def save(run: RunFolder, trainer: Trainer, step: int) -> None:
    """Write a checkpoint; every process hands rank 0 its part."""
    whole = state(trainer, step)
    if trainer.world.leads:
        run.save_checkpoint(whole)


@contextmanager
def not_finite_at(step: int) -> Iterator[None]:
    """Say at which step a number was not finite, and what helps."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error} at step {step}. The last good checkpoint is kept; resume with a lower "
            "`--learning-rate`."
        ) from error
