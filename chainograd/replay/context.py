"""The context of a step: what it sees besides its arguments and the random streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from chainograd.replay.autocast import Autocast, autocast_as
from chainograd.replay.settings import Settings, settings_as
from chainograd.torch_internals.settings import (
    any_autocast,
    caches_parametrizations,
    uncached_parametrizations,
)

# Note [Context]
# 1. What a step sees besides its arguments is captured once, before the first run of that step.
# 2. Every rerun happens inside that context and changes nothing outside.
# 3. The caller's random streams continue as if there had been no rerun.
# 4. A backward pass is not a rerun. Autocast, settings, streams and hooks are those in force where
#    `backward()` was called, as in the plain loop. So the context is put in force around each
#    rerun, and not around the gradient's way through the graph of the rerun.


@dataclass(frozen=True, slots=True)
class StepContext:
    """What steps see besides their arguments and the random streams.

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
        """Return what is in force now, for tensors on some types of devices."""
        autocast = tuple(
            Autocast.current(kind)
            for kind in sorted(device_types)
            if torch.amp.is_autocast_available(kind)
        )
        return cls(autocast, Settings.now(), modes)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Put autocast and settings in force for a block; `Flags` does that for the modes."""
        with settings_as(self.settings), autocast_as(self.autocast), uncached_parametrizations():
            yield

    def may_differ_here(self) -> bool:
        """Return whether autocast or settings may differ here from what the context holds."""
        return (
            any_autocast()
            or any(state.enabled for state in self.autocast)
            or caches_parametrizations()
            or Settings.now() != self.settings
        )


class Flags:
    """Which modules are in training and which tensors require a gradient, as in a first run.

    As a context it restores both at the end of the block, whatever a step does to them.

    Args:
        modes: Modules, and whether each was in training.
        tensors: Leaves.
        trained: Whether each leaf required a gradient.
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
