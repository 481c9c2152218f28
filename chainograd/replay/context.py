"""What a step sees besides its arguments and random streams: put in force for each rerun."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from chainograd.replay.settings import Settings, set_as

# Note [Context]
# 1. What a step sees besides its arguments is captured once, before the first run of that step.
# 2. Every rerun happens inside that context and leaves no trace outside.
# 3. The streams that belong to the caller continue as if there had been no rerun.
# 4. A backward pass is not a rerun: autocast, settings, streams and hooks are those in force where
#    `backward()` was called, as in the plain loop. So the context holds around each rerun,
#    not around the gradient's way through its graph.


_any_autocast = torch._C._is_any_autocast_enabled


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


class OwnAutocast:
    """Autocast as it is where `backward()` was called: for gradients and hooks, not for the engine.

    What a chain computes for itself on the way back (norms for its report, digests) is computed as
    it stands.

    Args:
        device_types: Types of devices in use.
    """

    def __init__(self, device_types: Iterable[str]) -> None:
        self.states: list[Autocast] = []
        if _any_autocast():
            available = filter(torch.amp.is_autocast_available, device_types)
            self.states = [s for s in map(Autocast.current, available) if s.enabled]
        self.cached = torch.is_autocast_cache_enabled()

    def off(self) -> AbstractContextManager[object]:
        """Return a context without autocast."""
        return autocast_as([replace(state, enabled=False) for state in self.states])

    @contextmanager
    def on(self) -> Iterator[None]:
        """Put autocast in force as it was."""
        with ExitStack() as stack:
            for s in self.states:
                region = torch.autocast(s.device_type, s.dtype, cache_enabled=self.cached)
                stack.enter_context(region)
            yield


@dataclass(frozen=True, slots=True)
class StepContext:
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
    def now(cls, device_types: set[str], modes: list[tuple[Module, bool]]) -> StepContext:
        """Return what is in force, for tensors on some types of devices."""
        autocast = tuple(
            Autocast.current(kind)
            for kind in sorted(device_types)
            if torch.amp.is_autocast_available(kind)
        )
        return cls(autocast, Settings.now(), modes)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Put them in force for a block, the modes of modules aside."""
        with set_as(self.settings), autocast_as(self.autocast), uncached_parametrizations():
            yield

    def elsewhere(self) -> bool:
        """Return whether anything of them may be different here, the modes of modules aside."""
        parametrize: Any = sys.modules.get("torch.nn.utils.parametrize")
        return (
            _any_autocast()
            or any(state.enabled for state in self.autocast)
            or (parametrize is not None and parametrize._cache_enabled > 0)
            or Settings.now() != self.settings
        )


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


class Flags:
    """Which modules are in training and which tensors require a gradient, as in a first run.

    As a context it puts both back as they are outside, whatever a step does to them.

    Args:
        modes: Modules, and whether each was in training.
        tensors: Leaves.
        trained: Whether each of them required a gradient.
    """

    def __init__(
        self,
        modes: Sequence[tuple[Module, bool]],
        tensors: Sequence[Tensor] = (),
        trained: Sequence[bool] = (),
    ) -> None:
        self.modules = [module for module, _ in modes]
        self.modes = [mode for _, mode in modes]
        self.tensors, self.trained = tensors, trained

    def __enter__(self) -> None:
        self.own, self.own_trained = self._now()
        self._put(self.modes, self.trained, self.own, self.own_trained)

    def __exit__(self, *error: object) -> None:
        self._put(self.own, self.own_trained, *self._now())

    def _now(self) -> tuple[list[bool], list[bool]]:
        modes = [module.training for module in self.modules] if self.modules else []
        return modes, [tensor.requires_grad for tensor in self.tensors]

    def _put(
        self,
        modes: Sequence[bool],
        trained: Sequence[bool],
        modes_now: Sequence[bool],
        trained_now: Sequence[bool],
    ) -> None:
        if modes != modes_now:
            for module, mode in zip(self.modules, modes, strict=True):
                module.training = mode
        if trained != trained_now:
            for tensor, wanted in zip(self.tensors, trained, strict=True):
                tensor.requires_grad_(wanted)
