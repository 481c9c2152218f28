"""DDIM: the deterministic or, with eta > 0, stochastic sampler of a noise prediction."""

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

    With alpha_bar_s < alpha_bar_t the same formula is DDIM inversion. With sigma = 0 it is Euler's
    method in sqrt(1/alpha_bar - 1).

    Args:
        x_t: State at time t.
        epsilon: Predicted noise at ``x_t``.
        alpha_bar_t: alpha-bar at time t.
        alpha_bar_s: alpha-bar at time s.
        sigma: Standard deviation of the fresh noise; see `ddim_sigma`.
        z: Standard normal noise, needed if ``sigma`` is not 0.
        epsilon_p: Predicted noise for P, if it differs from the predicted noise for D, as in
            Asyrp's asymmetric step. None means ``epsilon``.
        clamp: Bound for ``|P|``; the gradient through clamped pixels of P is 0. None means no
            clamp.

    Raises:
        ValueError: If ``sigma`` is not 0 and ``z`` is None.

    References:
        Song et al. (2020), Denoising Diffusion Implicit Models, Eq. 12.
        Kwon et al. (2022), Diffusion Models Already Have a Semantic Latent Space, Eq. 4.
    """
    if epsilon_p is None:
        epsilon_p = epsilon
    P = predicted_data(x_t, epsilon_p, alpha_bar_t=alpha_bar_t, clamp=clamp)
    x_s = math.sqrt(alpha_bar_s) * P
    # If sigma takes all the variance, rounding may leave -1e-17 under the root.
    D = math.sqrt(max(1 - alpha_bar_s - sigma**2, 0.0))
    if D:
        x_s = x_s + D * epsilon
    if sigma:
        if z is None:
            raise ValueError(
                f"`z` is needed if `sigma` is not 0 (here {sigma:.4g}). Pass standard normal noise "
                "of the shape of `x_t`."
            )
        x_s = x_s + sigma * z
    return x_s


def ddim_sigma(eta: float, alpha_bar_t: float, alpha_bar_s: float) -> float:
    """Return sigma = eta sqrt((1 - alpha_bar_s)/(1 - alpha_bar_t) (1 - alpha_bar_t/alpha_bar_s)).

    Args:
        eta: 0 is DDIM, 1 is DDPM's ancestral sampling.
        alpha_bar_t: alpha-bar at the start of the jump.
        alpha_bar_s: alpha-bar at its end, larger.
    """
    if not eta:
        return 0.0
    ratio = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)
    return eta * math.sqrt(max(ratio, 0.0))


class DDIM(nn.Module):
    """DDIM as a pure step ``x, i -> x``, for `CheckpointedChain` or a plain loop.

    Step ``i`` goes from ``grid[i]`` to ``grid[i + 1]``, by `ddim_update`. A rising grid inverts.

    Args:
        model: ``model(x, t, *args, **kwargs) -> epsilon`` with t ``[N]`` int64. Further arguments
            of the chain are passed to the model.
        schedule: The noise schedule the model was trained with.
        grid: Times as from `time_grid`, or its reverse for inversion.
        eta: Stochasticity; 0 is deterministic.
        noise: ``noise(x, i) -> z``, standard normal, needed if ``eta > 0``. It is a function of
            the index, so that a step can run again: `SeededNoise`.
        clamp: Bound for the predicted x_0; by default there is no bound.

    Raises:
        ValueError: If the grid neither falls nor rises, or if ``eta`` does not fit the grid or
            lacks a noise function.

    Example:
        >>> import torch
        >>> from chainograd.samplers import DDIM, NoiseSchedule, time_grid
        >>> step = DDIM(lambda x, t: x, NoiseSchedule.linear(), time_grid(5))
        >>> step(torch.zeros(1, 3), 0).shape
        torch.Size([1, 3])

        Inversion, from data to the noise that leads to it:

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
                "`grid` must hold two times or more, falling (sampling) or rising (inversion), got "
                f"{tuple(grid)}. `time_grid` makes such a grid."
            )
        if eta < 0 or (eta and (rising or noise is None)):
            raise ValueError(
                "`eta` must be 0 for inversion and at least 0 for sampling, and unless it is 0 it "
                f"needs a `noise(x, i)` function. Got eta={eta} and noise={noise} with a "
                f"{'rising' if rising else 'falling'} grid. Pass `noise=SeededNoise(seed)`, or "
                "leave `eta` out."
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
        # Inversion starts at clean data, -1; the model is evaluated at its lowest noise level, 0.
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
