"""DPM-Solver++(2M): second order from one evaluation a step, with the last one in its state."""

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
    """The state of a sampler with a memory of one step.

    The memory is part of the state, not of the sampler: the gradient passes through it, and a
    step can be run again.

    Args:
        x: The sample so far; after the last step the result.
        previous: The clean data that the step before predicted, the shape of ``x``.

    Example:
        >>> MultistepState.start(torch.ones(2)).previous
        tensor([0., 0.])
    """

    x: Tensor
    previous: Tensor

    @classmethod
    def start(cls, x_T: Tensor) -> MultistepState:
        """Return the state that enters step 0, which looks at no step before it."""
        return cls(x_T, torch.zeros_like(x_T))


class DPMSolver2M(nn.Module):
    r"""DPM-Solver++(2M) as a pure step ``(x, previous), i -> (x, previous)``.

    Step ``i`` goes from t = ``grid[i]`` to its neighbour s = ``grid[i + 1]``. With
    alpha^2 = alpha_bar, sigma^2 = 1 - alpha_bar, lambda = log(alpha / sigma), and r for the time
    of the step before:

        P   = (x - sigma_t epsilon) / alpha_t                                predicted clean data
        h   = lambda_s - lambda_t
        D   = P + h / (2 (lambda_t - lambda_r)) (P - previous)               drawn on by half a step
        x_s = sigma_s / sigma_t x + alpha_s (1 - e^-h) D

    The first step has no step before it and the step to clean data (s = -1) an infinite h; both
    take D = P, which is `DDIM`'s step with eta = 0.

    Args:
        model: ``model(x, t, *args, **kwargs) -> epsilon`` with t ``[N]`` int64; whatever the
            chain is called with besides the state is passed on to it.
        schedule: The noise schedule the model was trained with.
        grid: Falling times as from `time_grid`, in T-1 … -1.
        clamp: Bound for the predicted clean data; none unless asked.

    Raises:
        TypeError: If the grid does not hold integers.
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
        """Return the state at ``grid[i + 1]``; a plain pair will do for the one that enters.

        Raises:
            TypeError: If the state is a tensor.
        """
        if isinstance(state, Tensor):
            raise TypeError(
                "`state` must be a pair (x, previous), got a tensor of shape "
                f"{tuple(state.shape)}. Start with `MultistepState.start(x_T)`, and take `.x` of "
                "what the chain returns."
            )
        x, previous = state
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
        # alpha_s e^-h = alpha_t sigma_s / sigma_t, which is 0 and not 0/0 at clean data.
        x_s = ratio * x + (math.sqrt(alpha_bar_s) - ratio * math.sqrt(alpha_bar_t)) * D
        return MultistepState(x_s, P)

    def _lambda(self, t: int) -> float:
        """Return log(alpha / sigma) at index ``t``, half the logarithm of signal to noise."""
        alpha_bar = self.schedule.alpha_bar(t)
        return math.log(alpha_bar / (1 - alpha_bar)) / 2
