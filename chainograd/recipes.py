"""How a normalised tensor is made again from the norm's input, and an activation that does so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Norm(NamedTuple):
    """The group norm that a recipe begins with."""

    num_groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return the norm of x, differentiable in it."""
        return F.group_norm(x, *self)


class Link(NamedTuple):
    """A constant that a normalised tensor was multiplied by, or that was added."""

    multiply: bool
    other: Any

    def __call__(self, y: Tensor) -> Tensor:
        """Return y times, or plus, the constant."""
        return y * self.other if self.multiply else y + self.other


class Recipe(NamedTuple):
    """How a normalised tensor can be made again: ``scale * x + shift``, channel by channel.

    ``links`` say the same as functions of x, statistics included: for second derivatives, and for
    norms whose statistics torch does not show (scale and shift are None).
    """

    x: Tensor
    scale: Tensor | None
    shift: Tensor | None
    links: tuple[Callable[[Tensor], Tensor], ...]


class ActivationOfNorm(torch.autograd.Function):
    """An activation that keeps the norm's input, which the norm keeps too, and not its own."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, y: Tensor, x: Tensor, recipe: Recipe, func: Any, options: dict[str, Any]
    ) -> Tensor:
        ctx.save_for_backward(x, recipe.scale, recipe.shift)
        ctx.links, ctx.func, ctx.options = recipe.links, func, options
        ctx.dtype = y.dtype
        return func(y, **options)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: D102
        x, scale, shift = ctx.saved_tensors
        # To be differentiated again, through the statistics too; or there is no other way.
        if torch.is_grad_enabled() or scale is None:
            y = x
            for link in ctx.links:
                y = link(y)
        else:
            y = torch.addcmul(shift, x.to(shift.dtype), scale)
        return DERIVATIVES[ctx.func](g, y.to(ctx.dtype), **ctx.options), None, None, None, None


def per_channel(other: Any, recipe: Recipe) -> bool:
    """Return whether a factor or summand is a constant for each channel of each sample."""
    if isinstance(other, (int, float)):
        return True
    if not isinstance(other, Tensor) or other.requires_grad or other.device != recipe.x.device:
        return False
    if other.dim() > recipe.x.dim() or not other.is_floating_point():
        return False
    if recipe.scale is None:  # it is kept as it is, so it must be small beside x
        shape, most = recipe.x.shape, recipe.x.numel() // 8
    else:
        shape, most = recipe.scale.shape, recipe.scale.numel()
    fits = all(a in (1, b) for a, b in zip(other.shape[::-1], shape[::-1], strict=False))
    return fits and other.numel() <= most


def _silu_backward(g: Tensor, y: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(g, y)
    sigmoid = torch.sigmoid(y)  # torch's own kernel has no derivative
    return g * sigmoid * (1 + y * (1 - sigmoid))


def _relu_backward(g: Tensor, y: Tensor) -> Tensor:
    return g * (y > 0)


def _gelu_backward(g: Tensor, y: Tensor, approximate: str = "none") -> Tensor:
    return torch.ops.aten.gelu_backward(g, y, approximate=approximate)


DERIVATIVES: dict[Any, Callable[..., Tensor]] = {
    F.silu: _silu_backward,
    F.gelu: _gelu_backward,
    F.relu: _relu_backward,
    torch.relu: _relu_backward,
    Tensor.relu: _relu_backward,
}
