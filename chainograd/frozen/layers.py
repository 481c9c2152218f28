"""Frozen layers that save only what the gradient of their input needs.

Torch's convolution saves its input although only the gradient of its weights needs it. An
activation saves its input although it can be recomputed from what the norm before it saves anyway.

    layer, its weights frozen        torch saves      saved here
    convolution, transposed          x                nothing
    batch norm in eval mode          x                nothing
    norm (+ scale, shift) + act      x, input of act  x
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import Self

from chainograd.captured.stand_ins import StandIns
from chainograd.frozen.conditions import is_frozen, is_small_constant
from chainograd.frozen.recompute import Recomputation, cast_again, recomputation_of_norm
from chainograd.frozen.saved_tensors import discard_saved, recompute_saved
from chainograd.frozen.weak_tensor_dict import WeakTensorDict
from chainograd.torch_internals.modes import DeviceContext, function_modes
from chainograd.torch_internals.saved_tensors import saved_tensors_are_hooked, saves
from chainograd.torch_internals.tensors import version
from chainograd.torch_internals.transforms import transforms_active

WORTH = 1 << 16  # bytes saved for each operation that is watched

# Note [Frozen layers]
# 1. Torch makes the user's call as it stands. Then the call's node in the graph is told to save
#    less (note [Saved tensors]).
# 2. A layer is left to torch if one of its weights requires a gradient, if its input requires none,
#    or if anything about the call is unknown here.
# 3. Torch's attention and encoder layers in eval mode call a fused kernel, unless a function mode
#    is in force. This mode is one. So steps that reach such a layer are not watched.
# 4. If autocast cast a weight, the weight itself is saved, and cast again in the backward pass.

_CONVOLUTIONS = (
    torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
)  # fmt: skip
_NORMS = (F.group_norm, F.layer_norm, F.rms_norm)
_ACTIVATIONS = (F.silu, F.gelu, F.relu, torch.relu, Tensor.relu)
# What an activation's node saves: its input, or its result.
_SAVED = {"SiluBackward0": "self", "GeluBackward0": "self", "ReluBackward0": "result"}
_AFFINE = (Tensor.mul, torch.mul, Tensor.add, torch.add)


class Saving:
    """How much the frozen layers of similar calls save, and whether it pays to watch them.

    Watching takes microseconds an operation, which is a fifth of a small layer's time on a CPU. If
    a whole call has saved less than `WORTH` bytes an operation, later calls are not watched.

    Attributes:
        saved: Bytes that were not kept.
        operations: How many operations were watched.
        measured: Whether bytes were measured with it. Later calls must not exceed them.
    """

    def __init__(self) -> None:
        self.saved = self.operations = 0
        self.measured = False

    def recording(self) -> Callable[[], AbstractContextManager[object]]:
        """Return a function that makes the context for the recorded steps of a call."""
        if self.measured or self.saved >= WORTH * self.operations:
            return partial(FrozenLayers, self)
        return nullcontext


class FrozenLayers(TorchFunctionMode):
    """A context in which frozen layers save less.

    Attributes:
        saving: Counts the bytes.
        recomputations: How to recompute the result of a norm, and the version of that result.
        inputs: The norm's input, by the result of the activation after the norm.
        alone: Whether no mode of the user's own is in force, which could call other functions.
    """

    def __init__(self, saving: Saving | None = None) -> None:
        super().__init__()
        self.saving = saving or Saving()
        self.recomputations: WeakTensorDict[tuple[int, Recomputation]] = WeakTensorDict()
        self.inputs: WeakTensorDict[Tensor] = WeakTensorDict()

    def __enter__(self) -> Self:
        self.alone = all(isinstance(mode, _TRANSPARENT) for mode in function_modes())
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.saving.operations += 1
        y = func(*args, **kwargs)
        layer = _LAYERS.get(func)
        # torch.compile itself chooses what a compiled step saves.
        if layer is not None and self.alone and not torch.compiler.is_compiling():
            node = y.grad_fn
            # Inside a transform that differentiates twice, gradients would be wrong.
            if node is not None and not transforms_active() and not saved_tensors_are_hooked():
                layer(self, y, node, func, args, kwargs)
        return y

    def _norm(self, y: Tensor, node: Any, func: Any, args: Any, kwargs: Any) -> None:
        x, rest = args[0] if args else kwargs["input"], args[1:]
        options = {key: value for key, value in kwargs.items() if key != "input"}
        weights = tuple(t for t in (*rest, *options.values()) if isinstance(t, Tensor))
        if is_frozen(x, *weights):
            recomputation = recomputation_of_norm(
                node, x, lambda x: func(x, *rest, **options), weights
            )
            self.recomputations[y] = version(y), recomputation

    def _scale_or_shift(self, y: Tensor, node: Any, func: Any, args: Any, kwargs: Any) -> None:
        if len(args) != 2 or kwargs:
            return
        for normed, other in (args, args[::-1]):
            recomputation = self._recomputation(normed)
            if recomputation is not None and is_small_constant(other, normed):
                self.recomputations[y] = version(y), recomputation.then(func, other)
                return

    def _activate(self, y: Tensor, node: Any, func: Any, args: Any, kwargs: Any) -> None:
        recomputation = self._recomputation(args[0]) if args else None
        saved = _SAVED.get(type(node).__name__)
        if recomputation is None or saved is None or len(args) != 1 or kwargs.get("inplace"):
            return
        if saved == "self":
            recompute_saved(node, saved, recomputation.result)
        else:
            recompute_saved(node, saved, lambda: func(recomputation.result(), **kwargs))
        self.inputs[y] = recomputation.x
        self.saving.saved += y.nbytes

    def _recomputation(self, y: Any) -> Recomputation | None:
        """Return the recomputation of a tensor, if there is one and the tensor has not changed."""
        count, recomputation = self.recomputations.get(y) or (0, None)
        return None if recomputation is None or version(y) != count else recomputation

    def _convolve(self, y: Tensor, node: Any, func: Any, args: Any, kwargs: Any) -> None:
        given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        # A convolution without a batch, or of complex numbers, has a node of another class.
        if not is_frozen(x, weight, bias) or type(node).__name__ != "ConvolutionBackward0":
            return
        discard_saved(node, "input", self.inputs.get(x))
        self.saving.saved += x.nbytes
        if y.dtype != weight.dtype:  # note [Frozen layers], 4
            recompute_saved(node, "weight", cast_again(weight, y.dtype))

    def _batch_norm(self, y: Tensor, node: Any, func: Any, args: Any, kwargs: Any) -> None:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        of_batch = given.get("training") or given["running_var"] is None
        frozen = is_frozen(given["input"], given.get("weight"), given.get("bias"))
        if frozen and not of_batch and saves(node, "input"):
            discard_saved(node, "input", dense=True)
            self.saving.saved += y.nbytes


_TRANSPARENT = (FrozenLayers, StandIns, DeviceContext)
_LAYERS: dict[Any, Callable[..., None]] = {
    **dict.fromkeys(_CONVOLUTIONS, FrozenLayers._convolve),
    F.batch_norm: FrozenLayers._batch_norm,
    **dict.fromkeys(_NORMS, FrozenLayers._norm),
    **dict.fromkeys(_ACTIVATIONS, FrozenLayers._activate),
    **dict.fromkeys(_AFFINE, FrozenLayers._scale_or_shift),
}
