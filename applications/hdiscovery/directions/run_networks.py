"""The networks of a run, and the two chains that they are trained through."""

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
class RunNetworks:
    """What a training changes: phi (shift block), omega (R), psi (D), around the frozen model.

    What evaluation, editing and pages see of a run is a `DirectionSet`.

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
    ) -> RunNetworks:
        """Make the networks from ``config.run.seed``, the same ones on every device.

        Args:
            config: How the run is made.
            dm: The diffusion model, on ``device``; by default the model that ``config.model.dm``
                names.
            device: Where everything lives.
        """
        dm = load_dm(config.model.dm, device=device) if dm is None else dm
        refuse_model(config, dm)
        # The networks are drawn on the CPU, so the generators of GPUs are left alone.
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(config.run.seed)
            shift_block, R, D = _drawn_networks(config, dm)
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
        shift = self.config.shift
        return draw(
            n, self.dm.image_shape, K=shift.K, S=shift.S, min_shift=shift.min_shift,
            device=self.device,
        )  # fmt: skip


def _drawn_networks(
    config: DiscoveryConfig, dm: DiffusionModel
) -> tuple[ShiftBlock, nn.Module, nn.Module]:
    """Return new networks phi, omega and psi, drawn in this order from torch's global stream."""
    networks, K = config.networks, config.shift.K
    shift_block = ShiftBlock(
        dm.unet.h_shape[0], dm.unet.embedding_channels, K, form=networks.shift_form,
        timed=not networks.time_invariant, head_std=networks.head_std,
    )  # fmt: skip
    channels, size, _ = dm.image_shape
    R = build_reconstructor(
        networks.reconstructor, channels=channels, image_size=size, num_directions=K,
        dropout=networks.r_dropout,
    )  # fmt: skip
    return shift_block, R, build_discriminator(dm)


def sampler_of(config: DiscoveryConfig) -> Sampler:
    """Return the sampler of a run."""
    return Sampler(
        M=config.sampling.M,
        t_stop=config.shift.t_stop,
        convention=config.sampling.grid,
        update=config.shift.update,
        precision=config.model.autocast,
        plan=config.memory.plan,
        micro_batch=config.memory.micro_batch,
        frozen=config.memory.frozen,
    )


def refuse_model(config: DiscoveryConfig, dm: DiffusionModel) -> None:
    """Check that a diffusion model can be used as a config says.

    Raises:
        ValueError: If its times or its images do not fit.
    """
    T, (_, size, _) = dm.schedule.num_train_steps, dm.image_shape
    if max(time_grid(config.sampling.M, T, convention=config.sampling.grid)) < config.shift.t_stop:
        raise ValueError(
            f"`t_stop` {config.shift.t_stop} leaves no step to be shifted: {dm.name} has the "
            f"times 0 … {T - 1}. Choose a smaller one; the paper's 400 and 500 are of 1,000."
        )
    if size < SMALLEST.get(config.networks.reconstructor, 0):
        raise ValueError(
            f"`reconstructor` {config.networks.reconstructor!r} needs images of 32 pixels or more, "
            f"and those of {dm.name} have {size}. Take 'difference'."
        )
