"""The networks of a run, and the two chains that sample with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chainograd import CheckpointedChain
from chainograd.samplers import DDIM, time_grid
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.step import AsymmetricDDIM, Directions, SymmetricDDIM, shifted_chain
from hdiscovery.dm.autocast import autocast
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.open import load_dm
from hdiscovery.networks.discriminator import build_discriminator
from hdiscovery.networks.reconstructor import build_reconstructor
from hdiscovery.networks.shift_block import ShiftBlock

SMALLEST = {"lenet": 32}  # edge of an image, by the reconstructor that needs it
UPDATES = {"asymmetric": AsymmetricDDIM, "symmetric": SymmetricDDIM}


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
        """Make the networks from ``config.run.seed``, the same ones on every device.

        Args:
            config: How the run is made.
            dm: The diffusion model, on ``device``; by default the model that ``config.model.dm``
                names.
            device: Where everything lives.
        """
        dm = load_dm(config.model.dm, device=device) if dm is None else dm
        refuse_model(config, dm)
        channels, size, _ = dm.image_shape
        with torch.random.fork_rng():
            torch.manual_seed(config.run.seed)
            shift_block = ShiftBlock(
                dm.unet.h_shape[0],
                dm.unet.embedding_channels,
                config.shift.K,
                form=config.networks.shift_form,
                timed=not config.networks.time_invariant,
                head_std=config.networks.head_std,
            )
            R = build_reconstructor(
                config.networks.reconstructor,
                channels=channels,
                image_size=size,
                num_directions=config.shift.K,
                dropout=config.networks.r_dropout,
            )
            D = build_discriminator(dm)
        for net in (shift_block, R, D):
            if torch.device(device).type != "cpu":  # fakes, which are there, cannot be moved
                net.to(device)
        grid = time_grid(
            config.sampling.M, dm.schedule.num_train_steps, convention=config.sampling.grid
        )

        def predict(x: Tensor, t: Tensor) -> Tensor:
            with autocast(config.model.autocast, x.device):
                return dm.unet(x, t)[:, :channels].to(x.dtype)

        step = UPDATES[config.shift.update](
            dm, shift_block, grid, t_stop=config.shift.t_stop, precision=config.model.autocast
        )
        real = CheckpointedChain(
            DDIM(predict, dm.schedule, grid),
            config.sampling.M,
            micro_batch=config.memory.micro_batch,
        )
        return cls(config, dm, shift_block, R, D, real, shifted_chain(step, **_options(config)))

    def along(self, directions: Directions) -> CheckpointedChain:
        """Return the chain ``x_T, k, s -> x_0`` of other directions under the same settings."""
        step: Any = self.shifted.step
        other = type(step)(
            self.dm, directions, step.grid, t_stop=step.t_stop, precision=step.precision
        )
        return shifted_chain(other, **_options(self.config))

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.shift_block.weight.device

    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw ``x_T`` from N(0, I), and k and s, one a sample.

        ``k ~ U{0 … K-1}``; ``s ~ U[-S, S]``, without what is nearer to 0 than ``min_shift``. All
        come from the CPU's global stream: the same ones on every device.
        """
        config = self.config
        x_T = torch.randn(n, *self.dm.image_shape)
        k = torch.randint(config.shift.K, (n,))
        s = 2 * torch.rand(n) - 1
        s = s * (config.shift.S - config.shift.min_shift) + s.sign() * config.shift.min_shift
        return x_T.to(self.device), k.to(self.device), s.to(self.device)


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


def _options(config: DiscoveryConfig) -> dict[str, Any]:
    return {
        "plan": config.memory.plan,
        "micro_batch": config.memory.micro_batch,
        "frozen": config.memory.frozen,
    }
