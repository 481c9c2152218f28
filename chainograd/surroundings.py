"""What a step sees besides its arguments and random streams: put in force for each rerun."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from chainograd.settings import Settings, set_as

# Note [Surroundings]
# 1. What a step sees besides its arguments is captured once, before the first run of that step.
# 2. Every rerun happens inside those surroundings and leaves no trace outside.
# 3. The streams that belong to the caller continue as if there had been no rerun.
# 4. A backward pass is not a rerun: autocast, settings, streams and hooks are those in force where
#    `backward()` was called, as in the plain loop. So the surroundings hold around each rerun,
#    not around the gradient's way through its graph.


@dataclass(frozen=True, slots=True)
class Autocast:
    """The autocast state of one device type.

    Steps always run with the cache of cast weights off: a cast that two steps shared would tie
    their graphs together.
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


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What steps see besides their arguments and random streams.

    Attributes:
        autocast: The autocast states that were in force.
        settings: Torch's global settings.
        modes: The modules that the steps reach, and whether each was in training.
    """

    autocast: tuple[Autocast, ...]
    settings: Settings
    modes: list[tuple[Module, bool]]

    @classmethod
    def now(cls, device_types: set[str], modes: list[tuple[Module, bool]]) -> Surroundings:
        """Return what is in force, for tensors on some types of devices."""
        autocast = tuple(
            Autocast.current(kind)
            for kind in sorted(device_types)
            if torch.amp.is_autocast_available(kind)
        )
        return cls(autocast, Settings.now(), modes)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Put them in force for a block."""
        with (
            set_as(self.settings),
            in_modes(self.modes),
            autocast_as(self.autocast),
            uncached_parametrizations(),
        ):
            yield


@contextmanager
def uncached_parametrizations() -> Iterator[None]:
    """Let `torch.nn.utils.parametrize.cached` cache nothing.

    As under autocast, a weight that two steps shared would tie their graphs together.
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
def trained_as(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> Iterator[None]:
    """Let leaves require a gradient where they did, and then where they do outside."""
    now = [tensor.requires_grad for tensor in tensors]
    _require(tensors, wanted)
    try:
        yield
    finally:
        _require(tensors, now)


def _require(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> None:
    for tensor, each in zip(tensors, wanted, strict=True):
        if tensor.requires_grad != each:
            tensor.requires_grad_(each)


@contextmanager
def in_modes(modes: Sequence[tuple[Module, bool]]) -> Iterator[None]:
    """Put modules in the modes they were in, training or not, and back in those they are in."""
    now = [module.training for module, _ in modes]
    _put_in([mode for _, mode in modes], modes)
    try:
        yield
    finally:
        _put_in(now, modes)


def _put_in(wanted: Sequence[bool], modes: Sequence[tuple[Module, bool]]) -> None:
    for mode, (module, _) in zip(wanted, modes, strict=True):
        if module.training != mode:
            module.training = mode
