"""What a step draws: from the run's seed, the step and the rank alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.training.bank import Bank
from hdiscovery.training.world import World


@contextmanager
def seeded(seed: int, step: int, rank: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Draw what a step of a rank draws, whatever was drawn before; leave the streams as they were.

    The streams are Python's, and torch's of the CPU and of one device. They serve noise,
    directions and shifts, D's dropout, and the pairs that R trains on again.

    Args:
        seed: The run's.
        step: Which step.
        rank: Which process.
        device: Where the networks are. No other device is touched.
    """
    own, before = (seed * 1_000_003 + step) * 10_007 + rank, random.getstate()
    device = torch.device(device)
    devices = [device.index or 0] if device.type == "cuda" else []
    # `torch.manual_seed` would seed every GPU, and `fork_rng` without a list would keep the state
    # of each of them: both would put a context of this process on the other processes' GPUs.
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(own)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(own)
        random.seed(own)
        try:
            yield
        finally:
            random.setstate(before)


def drawn(
    networks: RunNetworks, share: int, bank: Bank | None, step: int, world: World
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return noise, directions, shifts and, from a bank, the unshifted samples of a step."""
    x_T, k, s = networks.draw(share)
    if bank is None:
        return x_T, k, s, None
    x_T, x_0 = bank.pairs((step * world.size + world.rank) * share, share)
    return x_T.to(networks.device), k, s, x_0.to(networks.device)
