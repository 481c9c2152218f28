"""A DDIM step under a shift in h-space, Eq. 2 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from chainograd.samplers import ddim_update
from hdiscovery.dm.autocast import Autocast, autocast
from hdiscovery.dm.model import DiffusionModel


class ShiftFunction(Protocol):
    """f: K directions in h-space, learnt or not. A module, if it has parameters or buffers."""

    def __call__(self, h: Tensor, embedding: Tensor, k: Tensor, t: int) -> Tensor:
        """Return dh of direction ``k[n]`` for each sample at training time t, shaped like h."""
        ...


class AsymmetricDDIM(nn.Module):
    """One step of sampling under a shift, ``x, i, k, s -> x``: it enters the predicted x_0 only.

        h_hat = h + s f(h, k)
        x_s   = sqrt(alpha_bar_s) P(epsilon(x_t | h_hat)) + D(epsilon(x_t | h))      t >= t_stop
        x_s   = sqrt(alpha_bar_s) P(epsilon(x_t | h))     + D(epsilon(x_t | h))      t <  t_stop

    The encoder runs once; both branches are decoded in one batch.

    Args:
        dm: The frozen diffusion model.
        f: The directions.
        grid: Times as from `time_grid`.
        t_stop: Last time (inclusive) at which the shift is applied.
        precision: Of the networks; the update itself is in the precision of ``x``.

    Shapes:
        x ``[N, C, H, W]``; k ``[N]`` int64 and s ``[N]``; or ``[N, n]`` both, for n directions at
        once, all of them from the same unshifted h.
    """

    def __init__(
        self,
        dm: DiffusionModel,
        f: ShiftFunction,
        grid: Sequence[int],
        *,
        t_stop: int,
        precision: Autocast = "off",
    ) -> None:
        super().__init__()
        self.precision: Autocast = precision
        self.unet, self.f = dm.unet, f
        self.schedule, self.grid, self.t_stop = dm.schedule, tuple(grid), t_stop

    def train(self, mode: bool = True) -> AsymmetricDDIM:
        """Set the directions' mode; the diffusion model stays in eval mode."""
        super().train(mode)
        self.unet.eval()
        return self

    def forward(self, x: Tensor, i: int, k: Tensor, s: Tensor) -> Tensor:
        """Return the state at ``grid[i + 1]``."""
        with autocast(self.precision, x.device):
            epsilon, epsilon_p = self.predict(x, self.grid[i], k, s)
        return ddim_update(
            x,
            epsilon.to(x.dtype),
            epsilon_p=epsilon_p.to(x.dtype),
            alpha_bar_t=self.schedule.alpha_bar(self.grid[i]),
            alpha_bar_s=self.schedule.alpha_bar(self.grid[i + 1]),
        )

    def predict(self, x: Tensor, t: int, k: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return epsilon(x | h), and epsilon(x | h_hat), the same one after ``t_stop``."""
        C = x.shape[1]
        encoded = self.unet.encode(x, x.new_full((len(x),), t).long())
        h = self.unet.middle(encoded)
        if t < self.t_stop:
            epsilon = self.unet.decode(h, encoded)[:, :C]
            return epsilon, epsilon
        h_hat = self.shifted(h, encoded.embedding, k, s, t)
        both = self.unet.decode(torch.cat([h, h_hat]), encoded.twice())[:, :C]
        epsilon, epsilon_p = both.chunk(2)
        return epsilon, epsilon_p

    def shifted(self, h: Tensor, embedding: Tensor, k: Tensor, s: Tensor, t: int) -> Tensor:
        """Return h_hat = h + sum_j s_j f(h, k_j)."""
        h_hat = h
        for k_j, s_j in zip(k.view(len(h), -1).T, s.view(len(h), -1).T, strict=True):
            h_hat = h_hat + s_j[:, None, None, None] * self.f(h, embedding, k_j, t)
        return h_hat


class SymmetricDDIM(AsymmetricDDIM):
    """One step of sampling under a shift that enters both the predicted x_0 and the noise.

        x_s = sqrt(alpha_bar_s) P(epsilon(x_t | h_hat)) + D(epsilon(x_t | h_hat))    t >= t_stop

    What Asyrp was made to avoid: the two nearly cancel. For comparison.
    """

    def predict(self, x: Tensor, t: int, k: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return epsilon(x | h_hat) twice; epsilon(x | h) after ``t_stop``."""
        encoded = self.unet.encode(x, x.new_full((len(x),), t).long())
        h = self.unet.middle(encoded)
        if t >= self.t_stop:
            h = self.shifted(h, encoded.embedding, k, s, t)
        epsilon = self.unet.decode(h, encoded)[:, : x.shape[1]]
        return epsilon, epsilon
