"""The asymmetric DDIM step, Eq. 2 of the paper: the shift enters the predicted x_0 only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chainograd.samplers import ddim_update
from hdiscovery.autocast import Autocast, autocast
from hdiscovery.models.adm_unet import Encoded
from hdiscovery.models.dm import DiffusionModel
from hdiscovery.models.shift_block import ShiftBlock


class AsymmetricDDIM(nn.Module):
    """One step of sampling under a shift, ``x, i, k, s -> x``.

        h_hat = h + s f(h, k)
        x_s   = sqrt(alpha_bar_s) P(epsilon(x_t | h_hat)) + D(epsilon(x_t | h))      t >= t_stop
        x_s   = sqrt(alpha_bar_s) P(epsilon(x_t | h))     + D(epsilon(x_t | h))      t <  t_stop

    The encoder runs once; both branches are decoded in one batch.

    Args:
        dm: The frozen diffusion model.
        shift_block: The directions.
        grid: Times as from `time_grid`.
        t_stop: Last time (inclusive) at which the shift is applied.
        precision: Of the networks; the update itself is in the precision of ``x``.
    """

    def __init__(
        self,
        dm: DiffusionModel,
        shift_block: ShiftBlock,
        grid: Sequence[int],
        *,
        t_stop: int,
        precision: Autocast = "off",
    ) -> None:
        super().__init__()
        self.precision: Autocast = precision
        self.unet, self.shift_block = dm.unet, shift_block
        self.schedule, self.grid, self.t_stop = dm.schedule, tuple(grid), t_stop

    def train(self, mode: bool = True) -> AsymmetricDDIM:
        """Set the shift block's mode; the diffusion model stays in eval mode."""
        super().train(mode)
        self.unet.eval()
        return self

    def forward(self, x: Tensor, i: int, k: Tensor, s: Tensor) -> Tensor:
        """Return the state at ``grid[i + 1]``; ``k`` and ``s`` are ``[N]``, one a sample."""
        t = self.grid[i]
        with autocast(self.precision, x.device):
            epsilon, epsilon_p = self._predict(x, t, k, s)
        return ddim_update(
            x,
            epsilon.to(x.dtype),
            epsilon_p=epsilon_p.to(x.dtype),
            alpha_bar_t=self.schedule.alpha_bar(t),
            alpha_bar_s=self.schedule.alpha_bar(self.grid[i + 1]),
        )

    def _predict(self, x: Tensor, t: int, k: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return epsilon(x | h), and epsilon(x | h_hat), the same one after ``t_stop``."""
        C = x.shape[1]
        encoded = self.unet.encode(x, x.new_full((len(x),), t).long())
        h = self.unet.middle(encoded)
        if t < self.t_stop:
            epsilon = self.unet.decode(h, encoded)[:, :C]
            return epsilon, epsilon
        h_hat = h + s[:, None, None, None] * self.shift_block(h, encoded.embedding, k)
        epsilon, epsilon_p = self.unet.decode(torch.cat([h, h_hat]), _twice(encoded))[:, :C].chunk(
            2
        )
        return epsilon, epsilon_p


def _twice(encoded: Encoded) -> Encoded:
    features, skips, embedding = encoded
    return Encoded(
        torch.cat([features, features]),
        tuple(torch.cat([skip, skip]) for skip in skips),
        torch.cat([embedding, embedding]),
    )
