"""Flow matching: Euler's and Heun's method along a learned velocity, from noise to data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from chainograd.samplers.grids import falling
from chainograd.samplers.ode import euler, heun
from chainograd.samplers.prediction import per_sample


def flow_times(num_steps: int, *, shift: float = 1.0) -> tuple[float, ...]:
    r"""Return ``num_steps + 1`` times from 1, noise, to 0, data.

        u_i = 1 - i/M
        t_i = shift u_i / (1 + (shift - 1) u_i)

    Args:
        num_steps: M, at least 1.
        shift: Above 1, more steps lie near the noise, as large images need; 1 is uniform. Stable
            Diffusion 3 uses 3 at 1024 x 1024 pixels.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Esser et al. (2024), Scaling Rectified Flow Transformers for High-Resolution Image
        Synthesis, Eq. 23.

    Example:
        >>> flow_times(4)
        (1.0, 0.75, 0.5, 0.25, 0.0)
        >>> flow_times(4, shift=3.0)
        (1.0, 0.9, 0.75, 0.5, 0.0)
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    if not 0 < shift < math.inf:
        raise ValueError(
            f"`shift` must be positive and finite, got {shift}. Leave it at 1 for uniform times. "
            "For a shift given as mu, pass `math.exp(mu)`."
        )
    uniform = ((num_steps - i) / num_steps for i in range(num_steps + 1))
    return tuple(shift * u / (1 + (shift - 1) * u) for u in uniform)


class _Flow(nn.Module):
    """The part that samplers of a flow share: everything but the rule of the step."""

    _rule = staticmethod(euler)

    def __init__(self, velocity: Callable[..., Tensor], times: Sequence[float]) -> None:
        super().__init__()
        rising = len(times) > 1 and times[0] < times[-1]
        downwards = falling(
            "times", times[::-1] if rising else times, least=0, most=1,
            source="flow_times(num_steps)",
        )  # fmt: skip
        self.velocity = velocity
        self.times = downwards[::-1] if rising else downwards

    @property
    def num_steps(self) -> int:
        """Number of steps from time to time."""
        return len(self.times) - 1

    def forward(self, x: Tensor, i: int, *args: object, **kwargs: object) -> Tensor:
        """Return the state at time ``times[i + 1]``."""

        def slope(x: Tensor, t: float) -> Tensor:
            return self.velocity(x, per_sample(x, t), *args, **kwargs).to(x.dtype)

        return self._rule(slope, x, self.times[i], self.times[i + 1])


class FlowEuler(_Flow):
    r"""Euler's method for flow matching, as a pure step ``x, i -> x``.

    With data x_0, noise e and the straight path between them, a velocity v is trained on

        x_t = (1 - t) x_0 + t e,        v(x_t, t) = e - x_0,        dx/dt = v(x, t)

    Step ``i`` goes from t = ``times[i]`` to s = ``times[i + 1]``, in one evaluation of v and with a
    first-order error:

        x_s = x + (s - t) v(x, t)

    Args:
        velocity: ``v(x, t, *args, **kwargs)`` with t ``[N]`` in [0, 1], in float32 or the dtype of
            x if that is wider; 1 is noise. (The transformers of diffusers take ``1000 * t``. If t
            runs the other way, pass ``lambda x, t: -v(x, 1 - t)``.) Further arguments of the chain
            are passed to the velocity.
        times: Falling times as from `flow_times`, or rising times, which lead from data to noise.

    Raises:
        TypeError: If ``times`` holds something other than numbers.
        ValueError: If ``times`` neither falls nor rises, or leaves [0, 1].

    References:
        Lipman et al. (2023), Flow Matching for Generative Modeling.
        Liu et al. (2023), Flow Straight and Fast.

    Example:
        >>> import torch
        >>> from chainograd import CheckpointedChain
        >>> from chainograd.samplers import FlowEuler, flow_times
        >>> step = FlowEuler(lambda x, t: x, flow_times(8, shift=3.0))
        >>> CheckpointedChain(step, step.num_steps)(torch.ones(1, 3)).shape
        torch.Size([1, 3])
    """


class FlowHeun(_Flow):
    r"""Heun's method for flow matching, as a pure step ``x, i -> x``.

    Step ``i`` goes along the path of `FlowEuler` from t = ``times[i]`` to s = ``times[i + 1]``:

        ahead = x + (s - t) v(x, t)
        x_s   = x + (s - t) (v(x, t) + v(ahead, s)) / 2

    in two evaluations of v, with a second-order error. The step to time 0 is Euler's, so M steps
    take 2M - 1 evaluations. The graph of a step holds both.

    Args:
        velocity: ``v(x, t, *args, **kwargs)`` with t ``[N]`` in [0, 1], in float32 or the dtype of
            x if that is wider; 1 is noise. Further arguments of the chain are passed to the
            velocity.
        times: Falling times as from `flow_times`, or rising times, which lead from data to noise.

    Raises:
        TypeError: If ``times`` holds something other than numbers.
        ValueError: If ``times`` neither falls nor rises, or leaves [0, 1].

    References:
        Karras et al. (2022), Algorithm 1, for the rule.

    Example:
        >>> import torch
        >>> from chainograd import CheckpointedChain
        >>> from chainograd.samplers import FlowHeun, flow_times
        >>> step = FlowHeun(lambda x, t: x, flow_times(8, shift=3.0))
        >>> CheckpointedChain(step, step.num_steps)(torch.ones(1, 3)).shape
        torch.Size([1, 3])
    """

    _rule = staticmethod(heun)
