"""DPM-Solver++(2M): second order with one evaluation a step; the last one is in the state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from chainograd.samplers.grids import falling_times
from chainograd.samplers.prediction import per_sample, predicted_data
from chainograd.samplers.schedule import NoiseSchedule


class MultistepState(NamedTuple):
    """The state of a sampler that remembers one step.

    The memory is part of the state, not of the sampler, so the gradient passes through it and a
    step can run again.

    Args:
        x: The sample; after the last step, the result.
        previous: The clean data that the previous step predicted, in the shape of ``x``.

    Example:
        >>> MultistepState.start(torch.ones(2)).previous
        tensor([0., 0.])
    """

    x: Tensor
    previous: Tensor

    @classmethod
    def start(cls, x_T: Tensor) -> MultistepState:
        """Return the state that enters step 0, which does not use ``previous``."""
        return cls(x_T, torch.zeros_like(x_T))


class DPMSolver2M(nn.Module):
    r"""DPM-Solver++(2M) as a pure step ``(x, previous), i -> (x, previous)``.

    Step ``i`` goes from t = ``grid[i]`` to s = ``grid[i + 1]``. With alpha^2 = alpha_bar,
    sigma^2 = 1 - alpha_bar, lambda = log(alpha / sigma), and r the time of the previous step:

        P   = (x - sigma_t epsilon) / alpha_t                                predicted clean data
        h   = lambda_s - lambda_t
        D   = P + h / (2 (lambda_t - lambda_r)) (P - previous)               half a step ahead
        x_s = sigma_s / sigma_t x + alpha_s (1 - e^-h) D

    The first step has no previous step, and the step to clean data (s = -1) has an infinite h. Both
    use D = P, which is `DDIM`'s step with eta = 0.

    Args:
        model: ``model(x, t, *args, **kwargs) -> epsilon`` with t ``[N]`` int64. Further arguments
            of the chain are passed to the model.
        schedule: The noise schedule the model was trained with.
        grid: Falling times as from `time_grid`, in T-1 … -1.
        clamp: Bound for the predicted clean data; by default there is no bound.

    Raises:
        TypeError: If the grid holds something other than integers.
        ValueError: If the grid does not fall or leaves the schedule.

    References:
        Lu et al. (2022), DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
        Models, Algorithm 2.

    Example:
        >>> from chainograd import CheckpointedChain
        >>> from chainograd.samplers import DPMSolver2M, MultistepState, NoiseSchedule, time_grid
        >>> step = DPMSolver2M(lambda x, t: x, NoiseSchedule.linear(), time_grid(5))
        >>> chain = CheckpointedChain(step, step.num_steps)
        >>> chain(MultistepState.start(torch.ones(1, 3))).x.shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        schedule: NoiseSchedule,
        grid: Sequence[int],
        *,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.schedule = schedule
        self.grid = falling_times(grid, schedule)
        self.clamp = clamp

    @property
    def num_steps(self) -> int:
        """Number of steps of the grid, each one evaluation of the model."""
        return len(self.grid) - 1

    def forward(
        self, state: tuple[Tensor, Tensor], i: int, *args: object, **kwargs: object
    ) -> MultistepState:
        """Return the state at ``grid[i + 1]``; the state that enters may be a plain pair.

        Raises:
            TypeError: If the state is a tensor.
        """
        x, previous = _pair(state)
        t, s = self.grid[i], self.grid[i + 1]
        alpha_bar_t, alpha_bar_s = self.schedule.alpha_bar(t), self.schedule.alpha_bar(s)
        epsilon = self.model(x, per_sample(x, t), *args, **kwargs)
        P = predicted_data(x, epsilon, alpha_bar_t=alpha_bar_t, clamp=self.clamp)
        D = P
        if i > 0 and s != -1:
            lambda_r, lambda_t, lambda_s = map(self._lambda, self.grid[i - 1 : i + 2])
            h = lambda_s - lambda_t
            D = P + h / (2 * (lambda_t - lambda_r)) * (P - previous)
        ratio = math.sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t))
        # alpha_s e^-h is written as alpha_t sigma_s / sigma_t, which at clean data is 0, not 0/0.
        x_s = ratio * x + (math.sqrt(alpha_bar_s) - ratio * math.sqrt(alpha_bar_t)) * D
        return MultistepState(x_s, P)

    def _lambda(self, t: int) -> float:
        """Return log(alpha / sigma) at index ``t``."""
        alpha_bar = self.schedule.alpha_bar(t)
        return math.log(alpha_bar / (1 - alpha_bar)) / 2


def _pair(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if isinstance(state, Tensor):
        raise TypeError(
            f"`state` must be a pair (x, previous), got a tensor of shape {tuple(state.shape)}. "
            "Start with `MultistepState.start(x_T)`, and take `.x` of the chain's result."
        )
    return state
