"""Recent pairs, on which the reconstructor trains again."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.training.augment import moved_alike
from hdiscovery.training.world import World

Pair = tuple[Tensor, Tensor, Tensor, Tensor]  # x_0, shifted x_0, k, s; each of a batch
MIXED = 4  # batches that an update draws from the buffer


class RecentPairs:
    """The batches of the last steps. Sampling is expensive; R is cheap and learns slowly.

    Args:
        networks: The networks.
        world: The processes that train together.
    """

    def __init__(self, networks: RunNetworks, world: World) -> None:
        self.R, self.device, self.world = networks.R, networks.device, world
        self.settings, self.weights = networks.config.training, networks.config.loss
        self.batches: list[Pair] = []

    def train_again(self, pair: Pair, omega: torch.optim.Optimizer) -> None:
        """Keep a step's pairs, then update R on pairs of the buffer, ``r_updates - 1`` times."""
        if self.settings.r_updates == 1:
            return
        self.batches = [*self.batches, pair][-self.settings.r_buffer :]
        for _ in range(self.settings.r_updates - 1):
            omega.zero_grad()
            self.reconstruction(*self._mixed()).backward()
            self.world.average_gradients(list(self.R.parameters()))
            omega.step()

    def reconstruction(self, x_0: Tensor, shifted: Tensor, k: Tensor, s: Tensor) -> Tensor:
        """Return R's part of the loss."""
        logits, s_hat = self.R(x_0, shifted)
        L_k, L_s = F.cross_entropy(logits, k), F.l1_loss(s_hat, s)
        return self.weights.lambda_1 * L_k + self.weights.lambda_2 * L_s

    def state(self) -> list[list[list[Tensor]]]:
        """Return the batches of every process, on the CPU, to rank 0 alone."""
        mine = [[tensor.cpu() for tensor in pair] for pair in self.batches]
        return self.world.gather(mine)

    def restore(self, buffers: list[Any]) -> None:
        """Take this process's batches, or those of the rank that is left over by division."""
        mine = buffers[self.world.rank % len(buffers)]
        self.batches = [
            (x.to(self.device), y.to(self.device), k.to(self.device), s.to(self.device))
            for x, y, k, s in mine
        ]

    def _mixed(self) -> Pair:
        parts = random.choices(self.batches, k=MIXED)
        x_0, shifted, k, s = (torch.cat(column) for column in zip(*parts, strict=True))
        if self.settings.r_augment:
            x_0, shifted = moved_alike(x_0, shifted)
        return x_0, shifted, k, s
