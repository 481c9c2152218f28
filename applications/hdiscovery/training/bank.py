"""A bank: unshifted samples that a run draws once and uses in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hdiscovery.directions.run_networks import RunNetworks

Progress = Callable[[range], Iterable[int]]


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Pairs of noise and the sample that the frozen model makes of it.

    A training step then runs only the shifted branch. The cost: D sees no other real samples, so
    the bank should hold many more than a network can memorise.

    Attributes:
        x_T: ``[n, C, H, W]``.
        x_0: ``[n, C, H, W]``.
        seed: Of the order.
    """

    x_T: Tensor
    x_0: Tensor
    seed: int

    def pairs(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return ``count`` pairs of an endless walk through the bank, in a new order each round.

        Args:
            first: Position in the walk. It alone decides which pairs come, so a resumed run
                takes the pairs that it would have taken.
            count: Number of pairs.
        """
        n = len(self.x_T)
        where = [_order(n, self.seed, p // n)[p % n] for p in range(first, first + count)]
        return self.x_T[where], self.x_0[where]


@lru_cache(maxsize=2)
def _order(n: int, seed: int, round_: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + round_)
    return torch.randperm(n, generator=generator).tolist()


def drawn_pairs(
    networks: RunNetworks, numbers: range, *, progress: Progress = iter
) -> tuple[Tensor, Tensor]:
    """Return pairs on the CPU; each depends only on its number and on the run's seed.

    Args:
        networks: The networks.
        numbers: The pairs' numbers.
        progress: Wraps the loop over batches.
    """
    batch = max(1, networks.config.training.batch_size)
    noise, samples = [], []
    for start in progress(range(0, len(numbers), batch)):
        part = numbers[start : start + batch]
        x_T = torch.stack([_noise(networks, number) for number in part])
        with torch.no_grad():
            x_0 = networks.real(x_T.to(networks.device))
        noise.append(x_T)
        samples.append(x_0.cpu())
    return torch.cat(noise), torch.cat(samples)


def _noise(networks: RunNetworks, number: int) -> Tensor:
    seed = networks.config.run.seed * 1_000_000_007 + number
    return torch.randn(networks.dm.image_shape, generator=torch.Generator().manual_seed(seed))
