"""DDIM: the deterministic (or, with eta > 0, stochastic) sampler of a noise-prediction network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from chainograd.samplers.prediction import per_sample, predicted_data
from chainograd.samplers.schedule import NoiseSchedule


def ddim_update(
    x_t: Tensor,
    epsilon: Tensor,
    *,
    alpha_bar_t: float,
    alpha_bar_s: float,
    sigma: float = 0.0,
    z: Tensor | None = None,
    epsilon_p: Tensor | None = None,
    clamp: float | None = None,
) -> Tensor:
    r"""Return ``x_s``, one DDIM jump from time t to time s.

        P   = (x_t - sqrt(1 - alpha_bar_t) epsilon_p) / sqrt(alpha_bar_t)      predicted x_0
        D   = sqrt(1 - alpha_bar_s - sigma^2) epsilon                          direction to x_t
        x_s = sqrt(alpha_bar_s) P + D + sigma z

    Upwards (alpha_bar_s < alpha_bar_t) the same formula is DDIM inversion. With sigma = 0 it is
    Euler's method in sqrt(1/alpha_bar - 1).

    Args:
        x_t: State at time t.
        epsilon: Predicted noise at ``x_t``.
        alpha_bar_t: alpha-bar at time t.
        alpha_bar_s: alpha-bar at time s.
        sigma: Standard deviation of the fresh noise; see `ddim_sigma`.
        z: Standard normal noise, needed where ``sigma`` is not 0.
        epsilon_p: Predicted noise that P is made of, where it differs from D's: that is Asyrp's
            asymmetric step. None means ``epsilon``.
        clamp: Bound for ``|P|``; the gradient through clamped pixels of P is 0. None: no clamp.

    References:
        Song et al. (2020), Denoising Diffusion Implicit Models, Eq. 12.
        Kwon et al. (2022), Diffusion Models Already Have a Semantic Latent Space, Eq. 4.
    """
    if epsilon_p is None:
        epsilon_p = epsilon
    P = predicted_data(x_t, epsilon_p, alpha_bar_t=alpha_bar_t, clamp=clamp)
    x_s = math.sqrt(alpha_bar_s) * P
    # Rounding may leave -1e-17 under the root where sigma takes all the variance.
    D = math.sqrt(max(1 - alpha_bar_s - sigma**2, 0.0))
    if D:
        x_s = x_s + D * epsilon
    if sigma:
        if z is None:
            raise ValueError(
                f"`z` is needed where `sigma` is not 0 (here {sigma:.4g}): pass "
                "standard normal noise of the shape of `x_t`."
            )
        x_s = x_s + sigma * z
    return x_s


def ddim_sigma(eta: float, alpha_bar_t: float, alpha_bar_s: float) -> float:
    """Return sigma = eta sqrt((1 - alpha_bar_s)/(1 - alpha_bar_t) (1 - alpha_bar_t/alpha_bar_s)).

    Args:
        eta: 0 is DDIM, 1 is DDPM's ancestral sampling.
        alpha_bar_t: alpha-bar where the jump starts.
        alpha_bar_s: alpha-bar where it ends, larger.
    """
    if not eta:
        return 0.0
    ratio = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)
    return eta * math.sqrt(max(ratio, 0.0))


class DDIM(nn.Module):
    """DDIM as a pure step ``x, i -> x``, to be run by `CheckpointedChain` or a plain loop.

    Step ``i`` goes from ``grid[i]`` to ``grid[i + 1]``; an ascending grid inverts. A module, so
    that a chain finds the network's parameters; it keeps no state of its own and decides nothing
    about gradients.

    Args:
        model: ``model(x, t, *args, **kwargs) -> epsilon`` with t ``[N]`` int64; whatever the
            chain is called with besides x is passed on to it.
        schedule: The noise schedule the model was trained with.
        grid: Times as from `time_grid`, or its reverse for inversion.
        eta: Stochasticity; 0 is deterministic.
        noise: ``noise(x, i) -> z``, standard normal, needed with ``eta > 0``. Noise is a value: a
            function of the index, so that a step can be run again.
        clamp: Bound for the predicted x_0; none unless asked.

    Raises:
        ValueError: If grid, eta or noise do not fit together.

    Example:
        >>> import torch
        >>> from chainograd.samplers import DDIM, NoiseSchedule, time_grid
        >>> step = DDIM(lambda x, t: x, NoiseSchedule.linear(), time_grid(5))
        >>> step(torch.zeros(1, 3), 0).shape
        torch.Size([1, 3])

        Inversion, from data to the noise that would give it:

        >>> inverse = DDIM(lambda x, t: x, NoiseSchedule.linear(), time_grid(5)[::-1])
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        schedule: NoiseSchedule,
        grid: Sequence[int],
        *,
        eta: float = 0.0,
        noise: Callable[[Tensor, int], Tensor] | None = None,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        falling = all(t > s for t, s in pairwise(grid))
        rising = all(t < s for t, s in pairwise(grid))
        if len(grid) < 2 or not (falling or rising):
            raise ValueError(
                f"`grid` must hold two times or more, falling (sampling) or rising (inversion), "
                f"got {tuple(grid)}."
            )
        if eta < 0 or (eta and (rising or noise is None)):
            raise ValueError(
                f"`eta` must be 0 for inversion and at least 0 for sampling, with a `noise(x, i)` "
                f"function where it is not 0; got eta={eta}, noise={noise}, "
                f"{'rising' if rising else 'falling'} grid."
            )
        self.model = model
        self.schedule = schedule
        self.grid = tuple(grid)
        self.eta = eta
        self.noise = noise
        self.clamp = clamp

    @property
    def num_steps(self) -> int:
        """Number of steps of the grid, each one evaluation of the model."""
        return len(self.grid) - 1

    def forward(self, x: Tensor, i: int, *args: object, **kwargs: object) -> Tensor:
        """Return the state at ``grid[i + 1]``."""
        t, s = self.grid[i], self.grid[i + 1]
        # Inversion from clean data evaluates the model at its lowest noise level, index 0.
        epsilon = self.model(x, per_sample(x, max(t, 0)), *args, **kwargs)
        alpha_bar_t, alpha_bar_s = self.schedule.alpha_bar(t), self.schedule.alpha_bar(s)
        sigma = ddim_sigma(self.eta, alpha_bar_t, alpha_bar_s)
        z = self.noise(x, i) if sigma and self.noise is not None else None
        return ddim_update(
            x,
            epsilon.to(x.dtype),
            alpha_bar_t=alpha_bar_t,
            alpha_bar_s=alpha_bar_s,
            sigma=sigma,
            z=z,
            clamp=self.clamp,
        )
