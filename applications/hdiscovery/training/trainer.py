"""Algorithm 1 with what a run adds: R on recent pairs, a moving average, steps that settle."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.training.algorithm1 import Algorithm1, Objective
from hdiscovery.training.optimizers import clear, set_rates
from hdiscovery.training.recent_pairs import RecentPairs
from hdiscovery.training.world import World


class Trainer:
    """Trains the networks of a run.

    Args:
        networks: The networks, the same in every process.
        world: The processes that train together; by default this is the only one.
    """

    def __init__(self, networks: RunNetworks, world: World | None = None) -> None:
        self.networks, self.world = networks, world or World(device=networks.device)
        self.config = networks.config
        if self.config.networks.sync_batch_norm:
            networks.R = nn.SyncBatchNorm.convert_sync_batchnorm(networks.R)
        self.algorithm = Algorithm1(networks, self.world)
        self.optimizers = self.algorithm.optimizers
        self.average = average_of(networks) if self.config.optimizer.ema else None
        self.recent = RecentPairs(networks, self.world)

    def step(
        self, x_T: Tensor, k: Tensor, s: Tensor, x_0: Tensor | None = None
    ) -> dict[str, float]:
        """Do one step and return its record, averaged over the processes.

        Args:
            x_T: Noise, ``[N, C, H, W]``.
            k: Directions, ``[N]``.
            s: Shifts, ``[N]``.
            x_0: The unshifted sample of ``x_T``, if it is known.

        Raises:
            FloatingPointError: If a loss is not finite. No network was updated, unless it is a
                loss of step 2; then D was.
        """
        record, (real, shifted) = self.algorithm.step(x_T, k, s, x_0)
        self.recent.train_again((real, shifted, k, s), self.optimizers["omega"])
        if self.average is not None:
            self.average.update_parameters(self.networks.shift_block)
        return record

    def settle(
        self, x_T: Tensor, k: Tensor, s: Tensor, x_0: Tensor | None = None, *, rate: float
    ) -> dict[str, float]:
        """Do a step that leaves the directions as they are, and return its record.

        No gradient goes through the sampler, where most of a step's time goes. D trains on, so
        that L_G still says whether shifted samples can be told from others. A shift block with a
        moving average takes the average's weights from here on: they are what is evaluated, and
        what R has to know.

        Args:
            x_T: Noise, ``[N, C, H, W]``.
            k: Directions, ``[N]``.
            s: Shifts, ``[N]``.
            x_0: The unshifted sample of ``x_T``, if it is known.
            rate: Learning rate of R.

        Raises:
            FloatingPointError: If a loss is not finite; D may have been updated.
        """
        if self.average is not None:
            self.networks.shift_block.load_state_dict(self.average.module.state_dict())
        with torch.no_grad():
            real: Tensor = self.networks.real(x_T) if x_0 is None else x_0
            shifted = self.networks.shifted(x_T, k, s)
        record = self.algorithm.update_discriminator(real, shifted)
        set_rates(self.optimizers, {**self.config.rates, "omega": rate})
        record |= self._update_reconstructor(real, shifted, k, s)
        self.recent.train_again((real, shifted, k, s), self.optimizers["omega"])
        return record

    def _update_reconstructor(
        self, x_0: Tensor, shifted: Tensor, k: Tensor, s: Tensor
    ) -> dict[str, float]:
        """Update R alone, on samples without a graph."""
        self.networks.D.requires_grad_(False)
        clear(self.optimizers, "omega")
        terms = Objective(self.networks)(x_0, shifted, k, s)
        record = self.world.average_finite(terms)
        terms["loss"].backward()
        self.world.average_gradients(list(self.networks.R.parameters()))
        self.optimizers["omega"].step()
        return record


def average_of(networks: RunNetworks) -> AveragedModel:
    """Return the moving average of a shift block, ``phi' = ema phi' + (1 - ema) phi``."""
    decay = networks.config.optimizer.ema
    return AveragedModel(networks.shift_block, multi_avg_fn=get_ema_multi_avg_fn(decay))
