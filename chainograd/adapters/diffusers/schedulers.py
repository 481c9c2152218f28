"""Schedulers with a memory, run as pure functions of that memory.

A diffusers scheduler counts its steps and stores earlier outputs of the network in attributes. Here
these attributes are part of the state: they are written to a fresh copy of the scheduler before a
step, and read from the copy afterwards. So a step can run again from any state, and the gradient
passes through the history as through the sample.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chainograd.errors import ChainError
from chainograd.torch_internals import pytree
from chainograd.torch_internals.tensors import version

Memory = dict[str, Any]  # attributes, by name


class PureScheduler:
    """A scheduler ready for its first step, which gives every step a copy with its own memory.

    The memory is every attribute that differs from the original scheduler, whatever its name.
    Opaque objects (a Brownian tree) are carried along and shared.

    Args:
        scheduler: Any object whose state is in its attributes. It is copied and not changed.

    Example:
        >>> class Counts:
        ...     count = 0
        >>> pure = PureScheduler(Counts())
        >>> counts = pure.remembering({})
        >>> counts.count += 1
        >>> pure.memory_of(counts)
        {'count': 1}
    """

    def __init__(self, scheduler: Any) -> None:
        self.original = _copied(scheduler)
        self._constants = {
            name: version(value)
            for name, value in vars(self.original).items()
            if isinstance(value, Tensor)
        }

    def remembering(self, memory: Memory) -> Any:
        """Return a copy of the scheduler with a memory."""
        scheduler = _copied(self.original)
        vars(scheduler).update(pytree.tree_map(_own, memory))
        return scheduler

    def memory_of(self, scheduler: Any) -> Memory:
        """Return the memory of a copy.

        Raises:
            ChainError: If the copy changed a tensor that all copies share.
        """
        before = vars(self.original)
        for name, count in self._constants.items():
            if version(before[name]) != count:
                raise ChainError(
                    f"{type(scheduler).__name__} changed its tensor `{name}` in place, so its "
                    "steps cannot run again. Use a scheduler that does not change its tables."
                )
        return {
            name: value
            for name, value in vars(scheduler).items()
            if not (name in before and _same(value, before[name]))
        }


def _copied(scheduler: Any) -> Any:
    """Return a copy that shares tensors and opaque objects, but no lists and dicts."""
    copy = object.__new__(type(scheduler))
    for name, value in vars(scheduler).items():
        vars(copy)[name] = _copied_container(value)
    return copy


def _copied_container(value: Any) -> Any:
    # Exact types only: a config is a subclass of dict that never changes.
    if type(value) in (list, dict):
        return pytree.tree_map(lambda leaf: leaf, value)
    return value


def _own(leaf: Any) -> Any:
    # Cloned, because some schedulers change a remembered tensor in place, and a node holds it.
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _same(a: Any, b: Any) -> bool:
    """Return whether an attribute is unchanged: the same object, or equal plain values."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return isinstance(a, (bool, int, float, complex, str)) and a == b
