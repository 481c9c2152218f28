"""Trains in a run folder, from its last checkpoint on."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdiscovery.directions.config import MADE_BY, DiscoveryConfig, run_config
from hdiscovery.directions.discovery import Discovery
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import is_published, open_networks
from hdiscovery.directions.shipped import located
from hdiscovery.dm.compiled import compile_parts
from hdiscovery.training.algorithm1 import Trainer
from hdiscovery.training.bank import Bank, Progress, drawn_pairs, load_bank, save_bank
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
    bit, as one that was not.

    Args:
        run: The folder; rank 0 writes into it.
        config: How the run is made.
        world: The processes that train together; by default this is the only one, on the CPU.
        progress: Wraps the loop that fills a bank.

    Raises:
        FloatingPointError: If a loss is not finite; the last good checkpoint is kept.
        ValueError: If the batch cannot be shared out, or all checkpoints are damaged.
    """
    world = world or World()
    share = world.share(config.training.batch_size)
    discovery = Discovery.build(config, device=world.device)
    if config.model.shard_dm:
        from hdiscovery.training.sharding import shard

        shard(discovery.dm.unet, world)
    if config.model.compile:
        compile_parts(discovery.dm.unet)
    bank = _bank(run.path / bank_name(config), discovery, world, progress)
    trainer = Trainer(discovery, world)
    checkpoint = run.load_checkpoint()
    first = trainer.restore(checkpoint) if checkpoint else 0
    if checkpoint is None and config.run.start_from:
        trainer.begin_with(start_of(config))
    if world.leads:
        run.keep_records(before=first)
    for step in range(first, config.all_steps):
        started = time.perf_counter()
        try:
            with seeded(config.run.seed, step, world.rank):
                drawn = _drawn(discovery, share, bank, step, world)
                if step < config.training.steps:
                    terms = trainer.step(*drawn)
                else:
                    terms = trainer.settle(*drawn, rate=config.settle_rate(step))
            saves = (step + 1) % config.run.save_every == 0 or step + 1 == config.all_steps
            if saves:
                trainer.refuse_not_finite()
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} at step {step}. The last good checkpoint is kept; resume with a lower "
                "`--learning-rate`."
            ) from error
        record = {"step": step, **terms, "seconds": time.perf_counter() - started}
        if world.leads:
            run.append_record(record)
        if saves:
            state = trainer.state(step + 1)  # in every process: rank 0 collects
            if world.leads:
                run.save_checkpoint(state)
        yield record


def start_of(config: DiscoveryConfig) -> dict[str, Any]:
    """Return the last checkpoint of the run ``config.run.start_from``, which a run begins with.

    Of a published run, what it has of a checkpoint: ``optimizers`` is None then. ``R`` is None
    where that run's reconstructor is of another kind than ``config.networks.reconstructor``.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If it has no checkpoint yet, or its networks are of another kind.
    """
    run = RunFolder.open(located(Path(config.run.start_from)))
    theirs = run_config(run)
    for name in MADE_BY:
        if theirs.leaves()[name] != config.leaves()[name]:
            raise ValueError(
                f"`start_from` {config.run.start_from} is a run with `{name}` "
                f"{theirs.leaves()[name]!r}, and this one has {config.leaves()[name]!r}. Its "
                f"networks fit runs with the same {', '.join(MADE_BY)}."
            )
    if is_published(run):
        published, _ = open_networks(run)
        checkpoint = {"shift_block": published.shift_block.state_dict(), "average": None,
                      "R": published.R.state_dict(), "optimizers": None}  # fmt: skip
    else:
        checkpoint = run.load_checkpoint()
    if checkpoint is None:
        raise ValueError(f"`start_from` {config.run.start_from} has no checkpoint yet.")
    if theirs.networks.reconstructor != config.networks.reconstructor:
        checkpoint["R"] = None
    return checkpoint


@contextmanager
def seeded(seed: int, step: int, rank: int) -> Iterator[None]:
    """Draw what a step of a rank draws, whatever was drawn before; leave the streams as they were.

    Torch's streams and Python's: of noise, directions and shifts, of dropout in D, and of the pairs
    that R is trained on again.
    """
    own = (seed * 1_000_003 + step) * 10_007 + rank
    before = random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(own)
        random.seed(own)
        try:
            yield
        finally:
            random.setstate(before)


def _drawn(
    discovery: Discovery, share: int, bank: Bank | None, step: int, world: World
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    x_T, k, s = discovery.draw(share)
    if bank is None:
        return x_T, k, s, None
    x_T, x_0 = bank.pairs((step * world.size + world.rank) * share, share)
    return x_T.to(discovery.device), k, s, x_0.to(discovery.device)


def bank_name(config: DiscoveryConfig) -> str:
    """Return the name of a bank's file: one for each precision.

    A run may change its ``autocast`` on the way. Both images of a pair are made in the same one:
    else their difference, which R looks at, holds the rounding of one of them.
    """
    return (
        "bank.safetensors"
        if config.model.autocast == "off"
        else f"bank-{config.model.autocast}.safetensors"
    )


def _bank(path: Path, discovery: Discovery, world: World, progress: Progress) -> Bank | None:
    """Return the run's bank, which the processes fill together if it is not there yet."""
    config = discovery.config
    if not config.training.bank:
        return None
    if not world.first(path.exists):
        numbers = range(world.rank, config.training.bank, world.size)
        parts = world.gather(drawn_pairs(discovery, numbers, progress=progress))
        if world.leads:
            order = torch.cat([torch.arange(rank, config.training.bank, world.size)
                               for rank in range(world.size)]).argsort()  # fmt: skip
            x_T, x_0 = (torch.cat(tensors)[order] for tensors in zip(*parts, strict=True))
            save_bank(path, x_T, x_0)
    world.first(lambda: None)  # others wait until it is there
    return load_bank(path, seed=config.run.seed)
