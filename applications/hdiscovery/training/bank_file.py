"""The file of a run's bank, which its processes fill together."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.dm.tensors import save_tensors
from hdiscovery.training.bank import Bank, Progress, drawn_pairs
from hdiscovery.training.world import World


def open_bank(
    folder: Path, networks: RunNetworks, world: World, *, progress: Progress = iter
) -> Bank | None:
    """Return a run's bank, None if it has none; the processes fill it if it is not there yet."""
    config, path = networks.config, folder / bank_name(networks.config)
    if not config.training.bank:
        return None
    if not world.first(path.exists):
        numbers = range(world.rank, config.training.bank, world.size)
        parts = world.gather(drawn_pairs(networks, numbers, progress=progress))
        if world.leads:
            order = torch.cat([torch.arange(rank, config.training.bank, world.size)
                               for rank in range(world.size)]).argsort()  # fmt: skip
            x_T, x_0 = (torch.cat(tensors)[order] for tensors in zip(*parts, strict=True))
            save_bank(path, x_T, x_0)
    world.first(lambda: None)  # the other processes wait until the file is there
    return load_bank(path, seed=config.run.seed)


def bank_name(config: DiscoveryConfig) -> str:
    """Return the name of a bank's file: one for each precision.

    A run may change its ``autocast`` on the way. Both images of a pair must be made in the same
    precision: else their difference, which R looks at, holds the rounding of one of them.
    """
    precision = config.model.autocast
    return "bank.safetensors" if precision == "off" else f"bank-{precision}.safetensors"


def save_bank(path: Path, x_T: Tensor, x_0: Tensor) -> None:
    """Write a bank, complete or not at all."""
    save_tensors(path, {"x_T": x_T, "x_0": x_0})


def load_bank(path: Path, *, seed: int) -> Bank:
    """Read a bank.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        content = load_file(path)
        return Bank(content["x_T"], content["x_0"], seed)
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(
            f"The bank {path} is damaged ({error}). Remove it: the next run makes it again."
        ) from error
