"""Hooks of tensors outside a chain: called once, with the whole gradient, or not at all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from chainograd.torch_internals.autograd import (
    accumulation_hooks,
    call_after_backward,
    hooks_of,
    replace_hooks,
)

# Note [Hooks]
# 1. A leaf is used inside the steps as it is. While a step's gradient is computed its hooks are
#    taken off, because the chain sums up the gradient first; they see the sum as it leaves.
# 2. Torch calls the hooks of every input of the chain's node, with None where no gradient leaves
#    the node: a loss on an early state does not reach what later steps use. In the plain loop these
#    hooks would not be called. So until this backward pass is over, they are called with gradients
#    only.
# 3. Torch calls the hooks of a chain's results likewise, when a loss sees another leaf of the
#    result, or a later state whose gradient does not come so far. There is no moment to intervene,
#    so the table of hooks is made beforehand, and wraps every hook that is put into it.


@contextmanager
def without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let the hooks of tensors wait for the whole gradient: note [Hooks], 1."""
    hooked = [hooks for tensor in tensors if (hooks := hooks_of(tensor))]
    kept = [dict(hooks) for hooks in hooked]
    for hooks in hooked:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in zip(hooked, kept, strict=True):
            hooks.update(own)


def call_with_gradients_only(tensors: Sequence[Tensor]) -> None:
    """Let hooks of tensors be called in this backward pass with gradients only: note [Hooks], 2."""
    undo = [_silence(tensor) for tensor in tensors if _hooked(tensor)]
    if undo:

        def restore() -> None:
            for each in undo:
                each()

        call_after_backward(restore)


class _Table(OrderedDict[int, Callable[..., Any]]):
    """Hooks that are called with gradients only."""

    def __setitem__(self, key: int, hook: Callable[..., Any]) -> None:
        super().__setitem__(key, _if_gradient(hook))


def hooks_with_gradients_only(tensor: Tensor) -> None:
    """Let all hooks that a result of a chain ever gets see gradients only: note [Hooks], 3."""
    replace_hooks(tensor, _Table())


def _hooked(tensor: Tensor) -> bool:
    hooks = hooks_of(tensor)
    return not isinstance(hooks, _Table) and bool(hooks or accumulation_hooks(tensor))


def _silence(tensor: Tensor) -> Callable[[], None]:
    """Let a tensor's hooks see no gradient of None; return what undoes it."""
    arrived = [False]

    def note(g: Tensor | None) -> None:
        arrived[0] = g is not None

    own, after = dict(hooks_of(tensor) or {}), dict(accumulation_hooks(tensor))
    if (hooks := hooks_of(tensor)) is not None:
        hooks.update((k, _if_gradient(hook)) for k, hook in own.items())
    handle = tensor.register_hook(note)
    if after:
        accumulation_hooks(tensor).update((k, _if(arrived, hook)) for k, hook in after.items())

    def undo() -> None:
        handle.remove()
        for table, hooks in ((hooks_of(tensor) or {}, own), (accumulation_hooks(tensor), after)):
            # What was removed in the meantime stays removed.
            table.update({k: hook for k, hook in hooks.items() if k in table})

    return undo


def _if_gradient(hook: Callable[..., Any]) -> Callable[..., Any]:
    return lambda g: None if g is None else hook(g)


def _if(arrived: list[bool], hook: Callable[..., Any]) -> Callable[..., Any]:
    return lambda tensor: hook(tensor) if arrived[0] else None
