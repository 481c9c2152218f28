"""DDPM: ancestral sampling of a noise-prediction network, along any grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from chainograd.samplers.grids import falling_times
from chainograd.samplers.noise import Noise
from chainograd.samplers.prediction import per_sample, predicted_data
from chainograd.samplers.schedule import NoiseSchedule

Variance = Literal["small", "large"]


class DDPM(nn.Module):
    r"""Ancestral sampling as a pure step ``x, i -> x``.

    Step ``i`` goes from t = ``grid[i]`` to s = ``grid[i + 1]``. It draws x_s from the posterior
    given x_t and the predicted clean data P:

        P    = (x_t - sqrt(1 - alpha_bar_t) epsilon) / sqrt(alpha_bar_t)
        beta = 1 - alpha_bar_t / alpha_bar_s                  of the whole jump from t to s
        of_P = sqrt(alpha_bar_s) beta / (1 - alpha_bar_t)
        of_x = sqrt(1 - beta) (1 - alpha_bar_s) / (1 - alpha_bar_t)
        x_s  = of_P P + of_x x_t + sigma z
        sigma^2 = beta_tilde = beta (1 - alpha_bar_s) / (1 - alpha_bar_t)    "small"
        sigma^2 = beta                                                       "large"

    beta_tilde is the posterior's variance if the data is a single point, beta if the data is
    standard normal. The jump to clean data (s = -1) adds no noise, x_s = P.

    With the small variance and no clamp this is `DDIM` with eta = 1, written in x_t instead of
    epsilon. With a clamp the two differ: DDIM uses the network's epsilon beside the clamped P.

    Args:
        model: ``model(x, t, *args, **kwargs) -> epsilon`` with t ``[N]`` int64. Further arguments
            of the chain are passed to the model.
        schedule: The noise schedule the model was trained with.
        grid: Falling times as from `time_grid`, in T-1 … -1.
        noise: ``noise(x, i) -> z``, standard normal, a function of the index so that a step can
            run again: `SeededNoise`.
        variance: ``"small"`` or ``"large"``, as above.
        clamp: Bound for the predicted clean data; by default there is no bound.

    Raises:
        TypeError: If the grid holds something other than integers.
        ValueError: If the grid does not fall or leaves the schedule, or the variance is unknown.

    References:
        Ho et al. (2020), Denoising Diffusion Probabilistic Models, Eq. 6 and 7, section 3.2.

    Example:
        >>> import torch
        >>> from chainograd import CheckpointedChain
        >>> from chainograd.samplers import DDPM, NoiseSchedule, SeededNoise, time_grid
        >>> step = DDPM(lambda x, t: x, NoiseSchedule.linear(), time_grid(5), noise=SeededNoise(0))
        >>> CheckpointedChain(step, step.num_steps)(torch.zeros(1, 3)).shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        schedule: NoiseSchedule,
        grid: Sequence[int],
        *,
        noise: Noise,
        variance: Variance = "small",
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        if variance not in get_args(Variance):
            raise ValueError(f"`variance` must be one of {get_args(Variance)}, got {variance!r}.")
        self.model = model
        self.schedule = schedule
        self.grid = falling_times(grid, schedule)
        self.noise = noise
        self.variance: Variance = variance
        self.clamp = clamp

    @property
    def num_steps(self) -> int:
        """Number of steps of the grid, each one evaluation of the model."""
        return len(self.grid) - 1

    def forward(self, x: Tensor, i: int, *args: object, **kwargs: object) -> Tensor:
        """Return the state at ``grid[i + 1]``."""
        t, s = self.grid[i], self.grid[i + 1]
        alpha_bar_t, alpha_bar_s = self.schedule.alpha_bar(t), self.schedule.alpha_bar(s)
        epsilon = self.model(x, per_sample(x, t), *args, **kwargs)
        P = predicted_data(x, epsilon, alpha_bar_t=alpha_bar_t, clamp=self.clamp)
        beta = 1 - alpha_bar_t / alpha_bar_s
        ratio = (1 - alpha_bar_s) / (1 - alpha_bar_t)
        of_P = math.sqrt(alpha_bar_s) * beta / (1 - alpha_bar_t)
        of_x = math.sqrt(1 - beta) * ratio
        mean = of_P * P + of_x * x
        if s == -1:
            return mean
        sigma = math.sqrt(beta * ratio if self.variance == "small" else beta)
        return mean + sigma * self.noise(x, i)
