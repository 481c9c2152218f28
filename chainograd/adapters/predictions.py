"""Networks that predict something else, as what a sampler asks for: a denoiser, or the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from chainograd.samplers.schedule import NoiseSchedule

Prediction = Literal["epsilon", "v", "sample", "velocity"]


class EDMDenoiser(nn.Module):
    """EDM's network as a denoiser ``D(x, sigma)``; made by `edm_denoiser`."""

    def __init__(self, net: Callable[..., Tensor], class_labels: Tensor | None) -> None:
        super().__init__()
        self.net = net
        self.class_labels = class_labels

    def forward(
        self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, **kwargs: object
    ) -> Tensor:
        """Return the denoised x in its own dtype; sigma is ``[N]`` or one number for all."""
        labels = self.class_labels if class_labels is None else class_labels
        sigma = torch.as_tensor(sigma, device=x.device)
        return self.net(x, sigma, labels, **kwargs).to(x.dtype)


def edm_denoiser(net: Callable[..., Tensor], *, class_labels: Tensor | None = None) -> EDMDenoiser:
    r"""Return a network of EDM's code as the denoiser that `EDMHeun` and `EDMEuler` take.

    Its classes ``EDMPrecond``, ``VPPrecond``, ``VEPrecond`` and ``iDDPMPrecond`` are denoisers
    already, ``net(x, sigma, class_labels) -> D``: they convert to float32, scale, and bring sigma
    to the shape of x themselves. Left to do is to bring D, which is float32, to the dtype of the
    states: EDM samples in float64, so that what steps add is not rounded away.

    Two things stay with the caller. The levels are to be those the network knows:
    ``net.round_sigma(torch.tensor(karras_sigmas(18)))``. And a pickled network has its weights
    frozen: ``net.requires_grad_()`` to train it.

    Args:
        net: ``net(x, sigma, class_labels, **kwargs) -> D``, sigma ``[N]``.
        class_labels: ``[N, label_dim]`` or None. To make them an argument of the chain, pass them
            there: ``chain(x, class_labels)``.

    Returns:
        A module, so that a chain finds the network's parameters.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models,
        Table 1.

    Example:
        >>> from chainograd.samplers import EDMHeun, karras_sigmas
        >>> net = lambda x, sigma, class_labels: x.float() / (1 + sigma.reshape(-1, 1).float() ** 2)
        >>> step = EDMHeun(edm_denoiser(net), karras_sigmas(18))
        >>> step(80 * torch.ones(2, 3, dtype=torch.float64), 0).dtype
        torch.float64
    """
    return EDMDenoiser(net, class_labels)


class NoisePrediction(nn.Module):
    """A network as one that predicts the noise; made by `epsilon_from`."""

    def __init__(
        self, model: Callable[..., Tensor], schedule: NoiseSchedule, prediction: Prediction
    ) -> None:
        super().__init__()
        self.model = model
        self.schedule = schedule
        self.prediction = prediction

    def forward(self, x: Tensor, t: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return the predicted noise at ``x``; t is ``[N]``, int64."""
        if self.prediction == "epsilon":
            return self.model(x, t, *args, **kwargs)
        # In float64, as 1 - alpha_bar would lose digits otherwise; rounded once.
        alpha_bar = self.schedule.alpha_bars.to(x.device)[t].view(-1, *[1] * (x.ndim - 1))
        a, b = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if self.prediction == "velocity":
            tau, scale = b / (a + b), (1 / (a + b)).to(x.dtype)
            dtype = torch.promote_types(x.dtype, torch.float32)
            u = self.model(scale * x, tau.flatten().to(dtype), *args, **kwargs).to(x.dtype)
            return scale * x + (1 - tau).to(x.dtype) * u
        output = self.model(x, t, *args, **kwargs).to(x.dtype)
        if self.prediction == "v":
            return a.to(x.dtype) * output + b.to(x.dtype) * x
        return (x - a.to(x.dtype) * output) / b.to(x.dtype)


def epsilon_from(
    model: Callable[..., Tensor], schedule: NoiseSchedule, *, prediction: Prediction
) -> NoisePrediction:
    r"""Return the noise prediction that `DDIM` and its kin take, from any other prediction.

    With a = sqrt(alpha_bar_t), b = sqrt(1 - alpha_bar_t) and x_t = a x_0 + b epsilon:

        "epsilon"    the noise itself
        "v"          v = a epsilon - b x_0         epsilon = a v + b x_t
        "sample"     x_0                           epsilon = (x_t - a x_0) / b
        "velocity"   u = epsilon - x_0             epsilon = x_t / (a + b) + a / (a + b) u

    The last is a network of flow matching, as `FlowEuler` takes it. It is asked where its own
    straight path has the same ratio of noise to data: at x_t / (a + b) and time b / (a + b).

    ``sample`` divides by b: at the end of the chain, where b is small, what rounds x_0 is
    multiplied by a / b, 100 in the linear schedule.

    Args:
        model: ``model(x, t, *args, **kwargs)``: t ``[N]`` int64 indices of the schedule, for a
            velocity times in [0, 1], float32 or the precision of x if that is higher. Whatever
            the chain is called with besides x is passed on to it.
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
