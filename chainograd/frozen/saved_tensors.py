"""What torch's graph saves for the backward pass: let go of, or made again when it is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

# Note [Saved tensors]
# 1. The functions, their derivatives and the order of all sums are torch's own: only what a node
#    of the graph holds is another thing. So gradients are the same to the bit, second ones too.
# 2. Where values are not looked at, another tensor of that shape stands in: one that is kept
#    anyway, or NaN, so that a kernel that looks is seen.
# 3. A pair of hooks on a saved tensor is the only one, and the user's own, such as those of
#    `torch.utils.checkpoint`, may be asked once only: where they are in force, nothing is done.
# 4. What torch hands out for hooks lives no longer than its node, which is held meanwhile.

_autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]


def saved_are_hooked() -> bool:
    """Return whether hooks of the user's own on all that graphs save are in force."""
    if not _autograd._saved_tensors_hooks_is_enabled():
        return False
    try:
        _autograd._saved_tensors_hooks_disable("")  # which torch refuses where there are some
    except RuntimeError:
        return True
    finally:
        _autograd._saved_tensors_hooks_enable()
    return False


def discard_saved(
    node: Any, name: str, alike: Tensor | None = None, *, dense: bool = False
) -> None:
    """Let a node save no values of a tensor: its backward pass does not look at them.

    Args:
        node: Of the graph.
        name: What the node calls the tensor.
        alike: A tensor that is kept anyway, perhaps of the same form.
        dense: Whether only a tensor without overlaps can stand in: it takes memory for a while.
    """
    _hook(node, name, partial(_Form, alike, dense))


def recompute_saved(node: Any, name: str, make: Callable[[], Tensor]) -> None:
    """Let a node save nothing of a tensor that ``make`` gives again."""
    _hook(node, name, lambda _: make)


def _hook(node: Any, name: str, pack: Callable[[Tensor], Callable[[], Tensor]]) -> None:
    try:
        getattr(node, f"_raw_saved_{name}").register_hooks(pack, _call)
    except RuntimeError as error:
        # By the chain that this step's chain is inside of; note [Saved tensors], 3.
        if "have already been set" not in str(error):
            raise


def _call(make: Callable[[], Tensor]) -> Tensor:
    return make()  # torch gives it the place in the graph that the tensor had


def _contiguous(size: torch.Size) -> tuple[int, ...]:
    """Return the strides of a tensor of that size in the order of its dimensions."""
    strides, step = [], 1
    for length in reversed(size):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


class _Form:
    """The form of a tensor, and how to get one of that form."""

    __slots__ = ("alike", "dense", "device", "dtype", "one", "plain", "size", "stride")

    def __init__(self, alike: Tensor | None, dense: bool, tensor: Tensor) -> None:
        self.alike, self.dense = alike, dense
        self.size, self.stride = tensor.size(), tensor.stride()
        self.dtype, self.device = tensor.dtype, tensor.device
        # Kernels are chosen by the order in memory, which one channel has two of.
        self.plain = self.stride == _contiguous(self.size)
        # A subclass makes its own kind.
        self.one = None if type(tensor) is Tensor else tensor.new_full((), math.nan)

    def __call__(self) -> Tensor:
        kept, one = self.alike, self.one
        if kept is not None and (
            (kept.size(), kept.stride(), kept.dtype) == (self.size, self.stride, self.dtype)
        ):
            return kept
        if one is None:
            one = torch.full((), math.nan, dtype=self.dtype, device=self.device)
        if self.dense or not self.plain:
            return one.new_empty_strided(self.size, self.stride).fill_(math.nan)
        return one.expand(self.size)
