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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from chainograd.frozen_layers import CONVOLUTIONS, batch_norm, convolve, frozen
from chainograd.recipes import DERIVATIVES, ActivationOfNorm, Link, Norm, Recipe, per_channel

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
        # Inside of torch.func's transforms torch refuses functions such as ours.
        if torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            run = CONVOLUTIONS.get(func)
            if run is not None:
                return convolve(func, run, args, kwargs)
            if func is F.group_norm:
                return self._group_norm(*args, **kwargs)
            if func in (F.layer_norm, F.rms_norm):
                return self._norm_of_last_axes(func, args, kwargs)
            if func is F.batch_norm:
                return batch_norm(*args, **kwargs)
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
        if not (frozen(input, weight, bias) and input.dim() > 2):
            return F.group_norm(input, num_groups, weight, bias, eps)
        x = _as_group_norm_takes_it(input)
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

    def _norm_of_last_axes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        y = func(*args, **kwargs)
        given = {**dict(zip(("input", "normalized_shape"), args, strict=False)), **kwargs}
        x, weights = given["input"], [t for t in args[1:] if isinstance(t, Tensor)]
        weights += [t for t in kwargs.values() if isinstance(t, Tensor) and t is not x]
        if torch.is_autocast_enabled(x.device.type) or not frozen(x, *weights):
            return y
        rest = {key: value for key, value in kwargs.items() if key != "input"}

        def norm(x: Tensor) -> Tensor:
            return func(x, *args[1:], **rest)

        return self._with_recipe(y, Recipe(x, None, None, (norm,)))

    def _scale_or_shift(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if len(args) != 2 or kwargs:
            return result
        for y, other in (args, args[::-1]):
            recipe = self._recipe(y)
            if recipe is None or not per_channel(other, recipe):
                continue
            scale, shift = recipe.scale, recipe.shift
            if scale is not None and shift is not None:
                if func in _MULTIPLY:
                    scale, shift = scale * other, shift * other
                else:
                    shift = shift + other
            link = Link(func in _MULTIPLY, other)
            return self._with_recipe(result, Recipe(recipe.x, scale, shift, (*recipe.links, link)))
        return result

    def _activate(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recipe = self._recipe(args[0]) if args else None
        if recipe is None or len(args) != 1 or kwargs.get("inplace"):
            return func(*args, **kwargs)
        options = {key: value for key, value in kwargs.items() if key != "inplace"}
        return ActivationOfNorm.apply(args[0], recipe.x, recipe, func, options)

    def _with_recipe(self, y: Tensor, recipe: Recipe) -> Tensor:
        self.recipes[id(y)] = (weakref.ref(y), y._version, recipe)
        return y

    def _recipe(self, y: Any) -> Recipe | None:
        reference, version, recipe = self.recipes.get(id(y), (None, 0, None))
        if reference is None or reference() is not y or y._version != version:
            return None
        return recipe


def _as_group_norm_takes_it(x: Tensor) -> Tensor:
    """Return x in the dtype and the order in memory that `F.group_norm` computes in."""
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        x = x.float()
    if x.device.type == "cpu" and x.dim() in (4, 5):
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        if x.is_contiguous(memory_format=last) and not x.is_contiguous():
            return x
    return x.contiguous()


_ACTIVATIONS = set(DERIVATIVES)
_MULTIPLY = {Tensor.mul, torch.mul}
_AFFINE = {*_MULTIPLY, Tensor.add, torch.add}
