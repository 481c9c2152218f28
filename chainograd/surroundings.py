"""What a step sees besides its arguments and random streams: put in force for each rerun."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn import Module

# Note [Surroundings]
# 1. What a step sees besides its arguments is captured once, before the first run of that step.
# 2. Every rerun happens inside those surroundings and leaves no trace outside.
# 3. The streams that belong to the caller continue as if there had been no rerun.


@dataclass(frozen=True, slots=True)
class Autocast:
    """The autocast state of one device type.

    Steps always run with the cache of cast weights off: a weight that was cast without a graph
    would be reused where the graph is wanted, and its gradient would be silently lost.
    """

    device_type: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def current(cls, device_type: str) -> Autocast:
        """Return the state that is in force."""
        enabled = torch.is_autocast_enabled(device_type)
        return cls(device_type, enabled, torch.get_autocast_dtype(device_type))


@contextmanager
def autocast_as(states: Sequence[Autocast]) -> Iterator[None]:
    """Put the given autocast states in force, with the cache off."""
    with ExitStack() as stack:
        for state in states:
            if state.enabled or torch.is_autocast_enabled(state.device_type):
                stack.enter_context(
                    torch.autocast(
                        state.device_type, state.dtype, enabled=state.enabled, cache_enabled=False
                    )
                )
        yield


@contextmanager
def uncached_parametrizations() -> Iterator[None]:
    """Let `torch.nn.utils.parametrize.cached` cache nothing.

    A weight that was made without a graph would be reused where the graph is wanted, as under
    autocast, and one that was made in a step's graph would tie the steps' graphs together.
    """
    parametrize: Any = sys.modules.get("torch.nn.utils.parametrize")
    if parametrize is None or not parametrize._cache_enabled:
        yield
        return
    depth, cache = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = depth, cache


@contextmanager
def without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let hooks that tensors were given since the first run wait for the whole gradient."""
    hooked = [tensor._backward_hooks for tensor in tensors if tensor._backward_hooks]
    kept = [dict(hooks) for hooks in hooked]
    for hooks in hooked:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in zip(hooked, kept, strict=True):
            hooks.update(own)


@contextmanager
def in_modes(modes: Sequence[tuple[Module, bool]]) -> Iterator[None]:
    """Put modules in the modes they were in, training or not, and back in those they are in."""
    other = [(module, mode) for module, mode in modes if module.training != mode]
    for module, mode in other:
        module.training = mode
    try:
        yield
    finally:
        for module, mode in other:
            module.training = not mode


class Statistics:
    """The buffers of modules in training as they are now, such as statistics of batches.

    Args:
        modes: Modules, and whether each is in training.
    """

    def __init__(self, modes: Sequence[tuple[Module, bool]]) -> None:
        # The owner's table too: a module may count by `self.count = self.count + 1`.
        self.known = [
            (module._buffers, name, buffer, buffer.clone())
            for module, training in modes
            if training
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def put_back(self) -> None:
        """Let the modules have these buffers again, with the values that they had."""
        for buffers, name, buffer, _ in self.known:
            buffers[name] = buffer
        put_back([buffer for _, _, buffer, _ in self.known], [value for *_, value in self.known])


@contextmanager
def unchanged(modes: Sequence[tuple[Module, bool]]) -> Iterator[None]:
    """Put buffers back as they were: statistics of batches count a step's first run only."""
    before = Statistics(modes)
    try:
        yield
    finally:
        before.put_back()


def put_back(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Give buffers the values that they had."""
    with torch.no_grad():
        for buffer, value in zip(buffers, values, strict=True):
            # Batch norm changes its statistics without counting a version; so does this, for
            # graphs outside the chain that hold them. Of fakes it is not known what they hold.
            if isinstance(buffer, FakeTensor) or not torch.equal(buffer, value):
                with _unsafe_preserve_version_counter(buffer):
                    buffer.copy_(value)
