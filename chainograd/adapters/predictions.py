"""Networks converted to the prediction that a sampler takes: the noise, or a velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from chainograd.samplers.schedule import NoiseSchedule

Prediction = Literal["epsilon", "v", "sample", "velocity"]
Order = Literal["x, t", "t, x"]


class NoisePrediction(nn.Module):
    """A network as a noise prediction; made by `epsilon_from`."""

    def __init__(
        self, model: Callable[..., Tensor], schedule: NoiseSchedule, prediction: Prediction
    ) -> None:
        super().__init__()
        self.model = model
        self.schedule = schedule
        self.prediction = prediction

    def forward(self, x: Tensor, t: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return the predicted noise at ``x``; t is ``[N]`` int64."""
        if self.prediction == "epsilon":
            return self.model(x, t, *args, **kwargs)
        # In float64 and rounded once, because 1 - alpha_bar would lose digits.
        alpha_bar = self.schedule.alpha_bars.to(x.device)[t].view(-1, *[1] * (x.ndim - 1))
        a, b = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if self.prediction == "velocity":
            return self._from_velocity(x, a, b, *args, **kwargs)
        output = self.model(x, t, *args, **kwargs).to(x.dtype)
        if self.prediction == "v":
            return a.to(x.dtype) * output + b.to(x.dtype) * x
        return (x - a.to(x.dtype) * output) / b.to(x.dtype)

    def _from_velocity(
        self, x: Tensor, a: Tensor, b: Tensor, *args: object, **kwargs: object
    ) -> Tensor:
        tau, scale = b / (a + b), (1 / (a + b)).to(x.dtype)
        dtype = torch.promote_types(x.dtype, torch.float32)
        u = self.model(scale * x, tau.flatten().to(dtype), *args, **kwargs).to(x.dtype)
        return scale * x + (1 - tau).to(x.dtype) * u


def epsilon_from(
    model: Callable[..., Tensor], schedule: NoiseSchedule, *, prediction: Prediction
) -> NoisePrediction:
    r"""Return a network of any prediction as the noise prediction that `DDIM` and others take.

    With a = sqrt(alpha_bar_t), b = sqrt(1 - alpha_bar_t) and x_t = a x_0 + b epsilon:

        "epsilon"    the noise itself
        "v"          v = a epsilon - b x_0         epsilon = a v + b x_t
        "sample"     x_0                           epsilon = (x_t - a x_0) / b
        "velocity"   u = epsilon - x_0             epsilon = x_t / (a + b) + a / (a + b) u

    A ``"velocity"`` network is a flow-matching network, as `FlowEuler` takes it. It is evaluated
    where its straight path has the same ratio of noise to data: at x_t / (a + b) and time
    b / (a + b).

    ``"sample"`` divides by b. At the end of the chain, where b is small, this multiplies the
    rounding error of x_0 by a / b, which is 100 in the linear schedule.

    Args:
        model: ``model(x, t, *args, **kwargs)`` with t ``[N]``: int64 indices of the schedule, or
            for a velocity times in [0, 1], in float32 or the dtype of x if that is wider. Further
            arguments of the chain are passed to the model.
        schedule: The noise schedule of the sampler.
        prediction: What the model predicts.

    Returns:
        A module, so that a chain finds the network's parameters.

    Raises:
        ValueError: If the prediction is unknown.

    References:
        Salimans and Ho (2022), Progressive Distillation for Fast Sampling of Diffusion Models,
        Appendix D, for v.

    Example:
        >>> from chainograd.samplers import DDIM, NoiseSchedule, time_grid
        >>> schedule = NoiseSchedule.linear()
        >>> seven = epsilon_from(lambda x, t: 0 * x + 7, schedule, prediction="sample")
        >>> step = DDIM(seven, schedule, time_grid(1))
        >>> step(torch.zeros(1, 1), 0)
        tensor([[7.]])
    """
    if prediction not in get_args(Prediction):
        raise ValueError(f"`prediction` must be one of {get_args(Prediction)}, got {prediction!r}.")
    return NoisePrediction(model, schedule, prediction)


class VelocityFromDataAtOne(nn.Module):
    """A velocity whose time runs from noise at 1 to data at 0; made by `from_data_at_one`."""

    def __init__(self, model: Callable[..., Tensor], order: Order, scale: float) -> None:
        super().__init__()
        self.model = model
        self.order = order
        self.scale = scale

    def forward(self, x: Tensor, t: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return ``v(x, t)``; t is ``[N]`` or one number for all."""
        s = self.scale * (1 - t)
        first, second = (x, s) if self.order == "x, t" else (s, x)
        return -self.model(first, second, *args, **kwargs)


def from_data_at_one(
    model: Callable[..., Tensor], *, order: Order = "x, t", scale: float = 1.0
) -> VelocityFromDataAtOne:
    r"""Return the velocity of a network whose time runs from noise at 0 to data at 1.

    With data x_0, noise e and s = 1 - t, such a network u is trained on

        x_s = s x_0 + (1 - s) e,        u(x_s, s) = x_0 - e

    This is the path of `FlowEuler` in the opposite direction:

        v(x, t) = -u(x, 1 - t)

    Args:
        model: u. Further arguments of the chain are passed to the model.
        order: The order of u's arguments: ``"x, t"`` as in flow_matching and in the code of
            Rectified Flow, ``"t, x"`` as in torchcfm (TorchCFM) and networks for torchdiffeq.
        scale: The time of data in u's units: 999 in the code of Rectified Flow, otherwise 1.

    Returns:
        A module, so that a chain finds the network's parameters.

    Raises:
        ValueError: If the order is unknown.

    References:
        Lipman et al. (2023), Flow Matching for Generative Modeling.
        Tong et al. (2024), Improving and Generalizing Flow-Based Generative Models.
        Liu et al. (2023), Flow Straight and Fast.

    Example:
        >>> from chainograd.samplers import FlowEuler, flow_times
        >>> to_seven = lambda s, x: (7 - x) / (1 - s[:, None])
        >>> step = FlowEuler(from_data_at_one(to_seven, order="t, x"), flow_times(2))
        >>> step(step(torch.zeros(1, 1), 0), 1)
        tensor([[7.]])
    """
    if order not in get_args(Order):
        raise ValueError(
            f"`order` must be one of {get_args(Order)}, got {order!r}. For a network with other "
            "arguments, pass the sampler a function: `lambda x, t: -u(..., 1 - t)`."
        )
    return VelocityFromDataAtOne(model, order, scale)
