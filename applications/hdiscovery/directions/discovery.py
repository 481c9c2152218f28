"""The networks of a run, and the two chains that sample with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from chainograd import CheckpointedChain
from chainograd.samplers import time_grid
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.draw import Drawn, draw
from hdiscovery.directions.sampler import Sampler
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.open import load_dm
from hdiscovery.networks.discriminator import build_discriminator
from hdiscovery.networks.reconstructor import build_reconstructor
from hdiscovery.networks.shift_block import ShiftBlock

SMALLEST = {"lenet": 32}  # edge of an image, by the reconstructor that needs it


@dataclass(slots=True, eq=False)
class Discovery:
    """The networks of a run: phi (shift block), omega (R), psi (D), and the frozen model.

    Attributes:
        config: How the run is made.
        dm: The frozen diffusion model.
        shift_block: f, with parameters phi.
        R: The reconstructor, with parameters omega.
        D: The discriminator, with parameters psi.
        real: The chain ``x_T -> x_0``.
        shifted: The chain ``x_T, k, s -> x_0`` along the directions of the shift block.
    """

    config: DiscoveryConfig
    dm: DiffusionModel
    shift_block: ShiftBlock
    R: nn.Module
    D: nn.Module
    real: CheckpointedChain
    shifted: CheckpointedChain

    @classmethod
    def build(
        cls,
        config: DiscoveryConfig,
        dm: DiffusionModel | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> Discovery:
        """Make the networks from ``config.seed``, the same ones on every device.

        Args:
            config: How the run is made.
            dm: The diffusion model, on ``device``; by default the one that ``config.dm`` names.
            device: Where everything lives.
        """
        dm = load_dm(config.dm, device=device) if dm is None else dm
        refuse_model(config, dm)
        channels, size, _ = dm.image_shape
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            shift_block = ShiftBlock(
                dm.unet.h_shape[0],
                dm.unet.embedding_channels,
                config.K,
                form=config.shift_form,
                timed=not config.time_invariant,
                head_std=config.head_std,
            )
            R = build_reconstructor(
                config.reconstructor, channels=channels, image_size=size, num_directions=config.K,
                dropout=config.r_dropout,
            )  # fmt: skip
            D = build_discriminator(dm)
        for net in (shift_block, R, D):
            if torch.device(device).type != "cpu":  # fakes, which are there, cannot be moved
                net.to(device)
        sampler = sampler_of(config)
        return cls(
            config, dm, shift_block, R, D, sampler.real(dm), sampler.shifted(dm, shift_block)
        )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.shift_block.weight.device

    def draw(self, n: int) -> Drawn:
        """Draw n triples of x_T, k and s from torch's global stream."""
        config = self.config
        return draw(
            n, self.dm.image_shape, K=config.K, S=config.S, min_shift=config.min_shift,
            device=self.device,
        )  # fmt: skip


def sampler_of(config: DiscoveryConfig) -> Sampler:
    """Return the sampler of a run."""
    return Sampler(
        M=config.M,
        t_stop=config.t_stop,
        convention=config.grid,
        update=config.update,
        precision=config.autocast,
        plan=config.plan,
        micro_batch=config.micro_batch,
        frozen=config.frozen,
    )


def refuse_model(config: DiscoveryConfig, dm: DiffusionModel) -> None:
    """Check that a diffusion model can be used as a config says.

    Raises:
        ValueError: If its times or its images do not fit.
    """
    T, (_, size, _) = dm.schedule.num_train_steps, dm.image_shape
    if max(time_grid(config.M, T, convention=config.grid)) < config.t_stop:
        raise ValueError(
            f"`t_stop` {config.t_stop} leaves no step to be shifted: {dm.name} has the times 0 … "
            f"{T - 1}. Choose a smaller one; the paper's 400 and 500 are of 1,000."
        )
    if size < SMALLEST.get(config.reconstructor, 0):
        raise ValueError(
            f"`reconstructor` {config.reconstructor!r} needs images of 32 pixels or more, and "
            f"those of {dm.name} have {size}. Take 'difference'."
        )
