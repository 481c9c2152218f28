"""Frozen layers that keep only what the gradient of their input needs.

Torch's convolution keeps its input although a frozen one never asks for it, and an activation keeps
its input although that can be made again from what the norm before it keeps anyway.

    layer, its weights frozen        torch keeps      kept here
    convolution, transposed          x                nothing
    batch norm in eval mode          x                nothing
    norm (+ scale, shift) + act      x, input of act  x
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from typing_extensions import Self

from chainograd.captured.stand_ins import StandIns
from chainograd.frozen.recompute import Recomputation, cast_again, recomputation_of_norm
from chainograd.frozen.saved_tensors import discard_saved, recompute_saved, saved_are_hooked
from chainograd.frozen.while_alive import WhileAlive

WORTH = 1 << 16  # bytes saved for each operation that is watched

# Note [Frozen layers]
# 1. The user's call is made as it stands, by torch; then its node in the graph is told to save
#    less (note [Saved tensors]).
# 2. A layer is left as it is whenever a weight of it requires a gradient, its input requires none,
#    or anything about the call is not known here.
# 3. Torch's attention and encoder layers in eval mode take a kernel of their own unless a function
#    mode is in force, which this one is. So steps that reach such a layer are not watched.
# 4. Weights are kept as they are and cast again in the backward pass where autocast cast them.

_transforms_active = torch._C._are_functorch_transforms_active
_CONVOLUTIONS = (
    torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
)  # fmt: skip
_NORMS = (F.group_norm, F.layer_norm, F.rms_norm)
_ACTIVATIONS = (F.silu, F.gelu, F.relu, torch.relu, Tensor.relu)
# What an activation's node saves: its input, or its result.
_SAVED = {"SiluBackward0": "self", "GeluBackward0": "self", "ReluBackward0": "result"}
_AFFINE = (Tensor.mul, torch.mul, Tensor.add, torch.add)


_FAST = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def takes_fast_path(modes: Iterable[tuple[nn.Module, bool]]) -> bool:
    """Return whether a module is among some that calls other kernels while nobody watches."""
    return any(isinstance(module, _FAST) for module, _ in modes)


class Saving:
    """Whether frozen layers of calls of one kind are worth watching.

    To watch takes microseconds an operation, which is a fifth of a small layer's time on a CPU.
    Where a whole call has saved less than `WORTH` bytes for each operation, later calls like it
    are not watched.

    Attributes:
        saved: Bytes that were not kept.
        operations: How many were watched.
        measured: Whether bytes were measured with it, which later calls must not exceed.
    """

    def __init__(self) -> None:
        self.saved = self.operations = 0
        self.measured = False

    def recording(self) -> Callable[[], AbstractContextManager[object]]:
        """Return what makes the context for the recorded steps of a call."""
        if self.measured or self.saved >= WORTH * self.operations:
            return partial(FrozenLayers, self)
        return nullcontext


class FrozenLayers(TorchFunctionMode):
    """Runs a recorded step so that its frozen layers keep less.

    Attributes:
        saving: Counts them.
        recomputations: Of results of norms, with their versions.
        inputs: Those of the norms before activations, by the results of these.
        alone: Whether no mode of the user's own stands around, which may run other functions.
    """

    def __init__(self, saving: Saving | None = None) -> None:
        super().__init__()
        self.saving = saving or Saving()
        self.recomputations: WhileAlive[tuple[int, Recomputation]] = WhileAlive()
        self.inputs: WhileAlive[Tensor] = WhileAlive()

    def __enter__(self) -> Self:
        around = _get_current_function_mode_stack()
        self.alone = all(isinstance(mode, _TRANSPARENT) for mode in around)
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.saving.operations += 1
        y = func(*args, **kwargs)
        layer = _LAYERS.get(func)
        # What a compiled step keeps is torch.compile's to choose.
        if layer is not None and self.alone and not torch.compiler.is_compiling():
            node = y.grad_fn
            # What a transform differentiates twice would come out wrong.
            if node is not None and not _transforms_active() and not saved_are_hooked():
                layer(self, y, node, func, args, kwargs)
        return y

    def _norm(self, y: Tensor, node: Any, func: Any, args: Any, kwargs: Any) -> None:
        x, rest = args[0] if args else kwargs["input"], args[1:]
        options = {key: value for key, value in kwargs.items() if key != "input"}
        weights = tuple(t for t in (*rest, *options.values()) if isinstance(t, Tensor))
        if _frozen(x, *weights):
            recomputation = recomputation_of_norm(
                node, x, lambda x: func(x, *rest, **options), weights
            )
            self.recomputations.put(y, (y._version, recomputation))

    def _scale_or_shift(self, y: Tensor, node: Any, func: Any, args: Any, kwargs: Any) -> None:
        if len(args) != 2 or kwargs:
            return
        for normed, other in (args, args[::-1]):
            recomputation = self._recipe(normed)
            if recomputation is not None and _small(other, normed):
                self.recomputations.put(y, (y._version, recomputation.then(func, other)))
                return

    def _activate(self, y: Tensor, node: Any, func: Any, args: Any, kwargs: Any) -> None:
        recomputation, saved = (
            self._recipe(args[0]) if args else None,
            _SAVED.get(type(node).__name__),
        )
        if recomputation is None or saved is None or len(args) != 1 or kwargs.get("inplace"):
            return
        if saved == "self":
            recompute_saved(node, saved, recomputation.made)
        else:
            recompute_saved(node, saved, lambda: func(recomputation.made(), **kwargs))
        self.inputs.put(y, recomputation.x)
        self.saving.saved += y.nbytes

    def _recipe(self, y: Any) -> Recomputation | None:
        version, recomputation = self.recomputations.of(y) or (0, None)
        return None if recomputation is None or y._version != version else recomputation

    def _convolve(self, y: Tensor, node: Any, func: Any, args: Any, kwargs: Any) -> None:
        given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        # Another node is that of a convolution without a batch, or of complex numbers.
        if not _frozen(x, weight, bias) or type(node).__name__ != "ConvolutionBackward0":
            return
        discard_saved(node, "input", self.inputs.of(x))
        self.saving.saved += x.nbytes
        if y.dtype != weight.dtype:  # note [Frozen layers], 4
            recompute_saved(node, "weight", cast_again(weight, y.dtype))

    def _batch_norm(self, y: Tensor, node: Any, func: Any, args: Any, kwargs: Any) -> None:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        plain = given.get("training") or given["running_var"] is None
        frozen = _frozen(given["input"], given.get("weight"), given.get("bias"))
        if frozen and not plain and hasattr(node, "_raw_saved_input"):
            discard_saved(node, "input", dense=True)
            self.saving.saved += y.nbytes


_TRANSPARENT = (FrozenLayers, StandIns, DeviceContext)


def _frozen(x: Tensor, *weights: Tensor | None) -> bool:
    """Return whether the gradient passes x, and none of the weights wants one."""
    known = x.requires_grad and x.is_floating_point() and x.numel() > 0
    return known and not any(w is not None and w.requires_grad for w in weights)


def _small(other: Any, y: Tensor) -> bool:
    """Return whether a factor or summand may be kept: a number, or small and without a graph."""
    if isinstance(other, (int, float)):
        return True
    if not isinstance(other, Tensor) or other.requires_grad or other.device != y.device:
        return False
    fits = len(other.shape) <= y.dim() and all(
        a in (1, b) for a, b in zip(other.shape[::-1], y.shape[::-1], strict=False)
    )
    return fits and other.is_floating_point() and 8 * other.numel() <= y.numel()


_LAYERS: dict[Any, Callable[..., None]] = {
    **dict.fromkeys(_CONVOLUTIONS, FrozenLayers._convolve),
    F.batch_norm: FrozenLayers._batch_norm,
    **dict.fromkeys(_NORMS, FrozenLayers._norm),
    **dict.fromkeys(_ACTIVATIONS, FrozenLayers._activate),
    **dict.fromkeys(_AFFINE, FrozenLayers._scale_or_shift),
}
