"""Frozen layers that keep only what the gradient of their input needs.

Torch's convolution keeps its input although a frozen one never asks for it, and an activation keeps
its input although that can be made again, in one pass, from what the norm before it keeps anyway.

    layer, its weights frozen        torch keeps      kept here
    convolution, transposed          x                nothing
    batch norm in eval mode          x                nothing
    norm (+ scale, shift) + act      x, input of act  x
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Note [Frozen layers]
# 1. The forward pass calls the function that the user called: its result is the same to the bit,
#    and so is the check of a replayed step against its node. Only the backward pass is ours.
# 2. A layer is left to torch whenever a weight of it requires a gradient, its input requires none,
#    or anything about the call is not known here.
# 3. Weights are kept as they are and cast in the backward pass, where autocast cast them.


class FrozenLayers(TorchFunctionMode):
    """Runs frozen layers by functions that keep less, inside a recorded step."""

    def __init__(self) -> None:
        super().__init__()
        self.recipes: dict[int, tuple[weakref.ref[Tensor], int, Recipe]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            run = _CONVOLUTIONS.get(func)
            if run is not None:
                return _convolve(func, run, args, kwargs)
            if func is F.group_norm:
                return self._group_norm(*args, **kwargs)
            if func is F.batch_norm:
                return _batch_norm(*args, **kwargs)
            if func in _ACTIVATIONS:
                return self._activate(func, args, kwargs)
            if func in _AFFINE:
                return self._scale_or_shift(func, args, kwargs)
        return func(*args, **kwargs)

    def _group_norm(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        x = input
        plain = x.is_contiguous() and not torch.is_autocast_enabled(x.device.type)
        if not (_frozen(x, weight, bias) and x.dim() > 2 and plain):
            return F.group_norm(x, num_groups, weight, bias, eps)
        N, C = x.shape[:2]
        # What F.group_norm calls; here its statistics are seen, which make its result again.
        y, mean, rstd = torch.native_group_norm(
            x, weight, bias, N, C, x[0, 0].numel(), num_groups, eps
        )
        mean, rstd = mean.detach(), rstd.detach()  # else the norm's backward would run twice
        per_channel = (N, C, *[1] * (x.dim() - 2))
        scale = rstd[:, :, None].expand(N, num_groups, C // num_groups).reshape(N, C)
        shift = -(rstd * mean)[:, :, None].expand(N, num_groups, C // num_groups).reshape(N, C)
        if weight is not None:
            scale, shift = scale * weight, shift * weight
        if bias is not None:
            shift = shift + bias
        norm = Norm(num_groups, weight, bias, eps)
        recipe = Recipe(x, scale.view(per_channel), shift.view(per_channel), (norm,))
        return self._with_recipe(y, recipe)

    def _scale_or_shift(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if len(args) != 2 or kwargs:
            return result
        for y, other in (args, args[::-1]):
            recipe = self._recipe(y)
            if recipe is None or not _per_channel(other, recipe):
                continue
            if func in _MULTIPLY:
                scale, shift = recipe.scale * other, recipe.shift * other
            else:
                scale, shift = recipe.scale, recipe.shift + other
            link = Link(func in _MULTIPLY, other)
            return self._with_recipe(result, Recipe(recipe.x, scale, shift, (*recipe.links, link)))
        return result

    def _activate(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recipe = self._recipe(args[0]) if args else None
        if recipe is None or len(args) != 1 or kwargs.get("inplace"):
            return func(*args, **kwargs)
        options = {key: value for key, value in kwargs.items() if key != "inplace"}
        return _ActivationOfNorm.apply(args[0], recipe.x, recipe, func, options)

    def _with_recipe(self, y: Tensor, recipe: Recipe) -> Tensor:
        self.recipes[id(y)] = (weakref.ref(y), y._version, recipe)
        return y

    def _recipe(self, y: Any) -> Recipe | None:
        reference, version, recipe = self.recipes.get(id(y), (None, 0, None))
        if reference is None or reference() is not y or y._version != version:
            return None
        return recipe


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

    ``links`` say the same as functions of x, statistics included, for second derivatives.
    """

    x: Tensor
    scale: Tensor
    shift: Tensor
    links: tuple[Callable[[Tensor], Tensor], ...]


class _Convolution(torch.autograd.Function):
    """A convolution that keeps its weight and the shape of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, run: Any, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.how = x.shape, how
        return run(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        # Only its shape is looked at.
        x = g.new_empty(1).expand(ctx.shape)
        grads = torch.ops.aten.convolution_backward(
            g, x, weight.to(g.dtype), None, *ctx.how, [True, False, False]
        )
        return grads[0], None, None, None


class _BatchNorm(torch.autograd.Function):
    """Batch norm with given statistics: a fixed factor a channel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, variance: Tensor, eps: float, run: Any
    ) -> Tensor:
        ctx.save_for_backward(weight, variance)
        ctx.eps = eps
        return run(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, variance = ctx.saved_tensors
        factor = torch.rsqrt(variance + ctx.eps)
        factor = factor if weight is None else factor * weight
        factor = factor.view(-1, *[1] * (g.dim() - 2))
        return (g * factor).to(g.dtype), None, None, None, None


class _ActivationOfNorm(torch.autograd.Function):
    """An activation that keeps the norm's input, which the norm keeps too, and not its own."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, recipe: Recipe, func: Any, options: dict[str, Any]
    ) -> Tensor:
        ctx.save_for_backward(x, recipe.scale, recipe.shift)
        ctx.links, ctx.func, ctx.options = recipe.links, func, options
        ctx.dtype = y.dtype
        return func(y, **options)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, scale, shift = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again, through the statistics too
            y = x
            for link in ctx.links:
                y = link(y)
        else:
            y = torch.addcmul(shift, x.to(shift.dtype), scale)
        return _DERIVATIVES[ctx.func](g, y.to(ctx.dtype), **ctx.options), None, None, None, None


def _convolve(func: Any, transposed: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = ("input", "weight", "bias", "stride", "padding")
    names += ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    if len(args) > len(names) or set(kwargs) - set(names):
        return func(*args, **kwargs)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    if not _frozen(x, weight, bias) or x.dim() != weight.dim():
        return func(*args, **kwargs)
    n = x.dim() - 2
    dilation = _each(given.get("dilation", 1), n)
    padding = _padding(given.get("padding", 0), weight, dilation)
    if padding is None:
        return func(*args, **kwargs)
    how = (
        _each(given.get("stride", 1), n), padding, dilation, transposed,
        _each(given.get("output_padding", 0), n), given.get("groups", 1),
    )  # fmt: skip
    rest = {k: v for k, v in given.items() if k not in ("input", "weight")}
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))  # note [Frozen layers], 3
    return _Convolution.apply(x, weight, lambda x, weight: func(x, weight, **rest), how)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    def run(x: Tensor) -> Tensor:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)

    plain = not torch.is_autocast_enabled(input.device.type)
    if training or running_var is None or not plain or not _frozen(input, weight, bias):
        return run(input)
    return _BatchNorm.apply(input, weight, running_var, eps, run)  # type: ignore[return-value]


def _frozen(x: Tensor, *weights: Tensor | None) -> bool:
    return x.requires_grad and not any(w is not None and w.requires_grad for w in weights)


def _each(value: int | tuple[int, ...], n: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


def _padding(padding: Any, weight: Tensor, dilation: list[int]) -> list[int] | None:
    """Return the padding of each axis, or None where it is not the same on both sides."""
    n = weight.dim() - 2
    if padding == "valid":
        return [0] * n
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        return None if any(t % 2 for t in total) else [t // 2 for t in total]
    return _each(padding, n)


def _per_channel(other: Any, recipe: Recipe) -> bool:
    """Return whether a factor or summand is a constant for each channel of each sample."""
    if isinstance(other, (int, float)):
        return True
    if not isinstance(other, Tensor) or other.requires_grad or other.dim() > recipe.x.dim():
        return False
    if other.dtype != recipe.scale.dtype or other.device != recipe.scale.device:
        return False
    return torch.broadcast_shapes(other.shape, recipe.scale.shape) == recipe.scale.shape


def _silu_backward(g: Tensor, y: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(g, y)
    sigmoid = torch.sigmoid(y)  # torch's own kernel has no derivative
    return g * sigmoid * (1 + y * (1 - sigmoid))


def _relu_backward(g: Tensor, y: Tensor) -> Tensor:
    return g * (y > 0)


def _gelu_backward(g: Tensor, y: Tensor, approximate: str = "none") -> Tensor:
    return torch.ops.aten.gelu_backward(g, y, approximate=approximate)


_CONVOLUTIONS = {
    torch.conv1d: False, torch.conv2d: False, torch.conv3d: False,
    torch.conv_transpose1d: True, torch.conv_transpose2d: True, torch.conv_transpose3d: True,
}  # fmt: skip
_DERIVATIVES: dict[Any, Callable[..., Tensor]] = {
    F.silu: _silu_backward,
    F.gelu: _gelu_backward,
    F.relu: _relu_backward,
    torch.relu: _relu_backward,
    Tensor.relu: _relu_backward,
}
_ACTIVATIONS = set(_DERIVATIVES)
_MULTIPLY = {Tensor.mul, torch.mul}
_AFFINE = {*_MULTIPLY, Tensor.add, torch.add}
