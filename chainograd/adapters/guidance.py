"""Classifier guidance that gradients pass through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ClassifierGuidance(nn.Module):
    """The gradient of a log-probability; made by `classifier_guidance`."""

    def __init__(self, log_probability: Callable[..., Tensor], scale: float | Tensor) -> None:
        super().__init__()
        self.log_probability = log_probability
        self.scale = scale

    def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """Return the scaled gradient with respect to ``x``, which is itself differentiable."""

        def log_p(x: Tensor) -> Tensor:
            return self.log_probability(x, t, **kwargs).sum()

        # Not `autograd.grad`: if x does not require a gradient, that needs a new leaf, at which the
        # graph of the second derivative would end. The chain does not know such a leaf.
        return self.scale * torch.func.grad(log_p)(x)


def classifier_guidance(
    log_probability: Callable[..., Tensor], *, scale: float | Tensor = 1.0
) -> ClassifierGuidance:
    r"""Return a ``cond_fn`` that gradients pass through.

        cond_fn(x, t) = scale d log p(y | x, t) / dx

    Args:
        log_probability: ``log_probability(x, t, **model_kwargs) -> [N]``, twice differentiable.
        scale: Strength of the guidance. A tensor can get a gradient.

    Returns:
        A module, so that a chain finds the classifier's parameters.

    References:
        Dhariwal and Nichol (2021), Diffusion Models Beat GANs on Image Synthesis, section 4.

    Example:
        >>> towards_one = classifier_guidance(lambda x, t: -(x - 1) ** 2 / 2, scale=10.0)
        >>> towards_one(torch.zeros(2), torch.zeros(2))
        tensor([10., 10.])
    """
    return ClassifierGuidance(log_probability, scale)
