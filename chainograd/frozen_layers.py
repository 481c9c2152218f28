"""Convolutions and batch norms that keep nothing of their input, for frozen weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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


def convolve(func: Any, transposed: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a convolution; if it is frozen, by one that keeps nothing of its input."""
    names = ("input", "weight", "bias", "stride", "padding")
    names += ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    if len(args) > len(names) or set(kwargs) - set(names):
        return func(*args, **kwargs)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    if not frozen(x, weight, bias) or x.dim() != weight.dim():
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


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Run a batch norm; if it is frozen, by one that keeps nothing of its input."""

    def run(x: Tensor) -> Tensor:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)

    plain = not torch.is_autocast_enabled(input.device.type)
    if training or running_var is None or not plain or not frozen(input, weight, bias):
        return run(input)
    return _BatchNorm.apply(input, weight, running_var, eps, run)  # type: ignore[return-value]


def frozen(x: Tensor, *weights: Tensor | None) -> bool:
    """Return whether the gradient passes x, and none of the weights wants one."""
    known = x.requires_grad and x.is_floating_point() and x.numel() > 0
    return known and not any(w is not None and w.requires_grad for w in weights)


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


CONVOLUTIONS = {
    torch.conv1d: False, torch.conv2d: False, torch.conv3d: False,
    torch.conv_transpose1d: True, torch.conv_transpose2d: True, torch.conv_transpose3d: True,
}  # fmt: skip
