"""Models that let only part of the gradient through, as published methods use them.

To exclude whole steps, use ``grad_steps=`` of a chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from chainograd.state import differentiable
from chainograd.torch_internals import pytree


class ScaledInput(nn.Module):
    r"""A model that scales the gradient of its first argument.

        model(u(x), …)        with  u(x) = x,  du/dx = scale

    In a sampler's step x_s = a x + b model(x, t) the Jacobian becomes a + scale b dmodel/dx. With
    ``scale=0`` the gradient only follows the linear path: x_T gets the product of the a's, and
    parameters get their gradient through the output of their own step (DRTune). Other scales are
    the coupling alpha of FlowBP's bridge. Values do not change.

    Args:
        model: ``model(x, *args, **kwargs)``; x is a tensor or any pytree of tensors.
        scale: Factor of the gradient; 0 stops it.

    References:
        Wu et al. (2024), Deep Reward Supervisions for Tuning Text-to-Image Diffusion Models.
        Wang et al. (2026), Exploring the Design Space of Reward Backpropagation for Flow Matching.

    Example:
        >>> model = ScaledInput(torch.nn.Tanh(), scale=0.25)
        >>> x = torch.zeros((), requires_grad=True)
        >>> (3 * x + model(x)).backward()
        >>> x.grad
        tensor(3.2500)
    """

    def __init__(self, model: Callable[..., Any], *, scale: float) -> None:
        super().__init__()
        self.model = model
        self.scale = scale

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output."""
        return self.model(pytree.tree_map(self._scaled, x), *args, **kwargs)

    def _scaled(self, leaf: Any) -> Any:
        if not differentiable(leaf):
            return leaf
        if self.scale == 0:
            return leaf.detach()
        # lerp is x + scale (x - x), which is exactly x; scale x + (1 - scale) x is not.
        return torch.lerp(leaf.detach(), leaf, self.scale)


class StoppedOutput(nn.Module):
    """A model that gets no gradient, for steps that should not train it.

    The gradient still passes the step on its linear path; ``grad_steps`` without the step would
    stop the gradient there. DRTune trains some of the steps: the model's input is stopped in these
    steps, and its output in all others. Such a step is run again for its linear path.

    Args:
        model: ``model(*args, **kwargs)``.

    Example:
        >>> model = torch.nn.Linear(1, 1)
        >>> x = torch.ones(1, requires_grad=True)
        >>> (3 * x + StoppedOutput(model)(x)).backward()
        >>> x.grad, model.weight.grad
        (tensor([3.]), None)
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output, detached."""
        with torch.no_grad():  # builds no graph; tangents of forward-mode AD still need `detach`
            return pytree.tree_map_only(Tensor, Tensor.detach, self.model(*args, **kwargs))
