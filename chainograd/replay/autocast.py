"""Autocast: its state in the first run of a step, and where `backward()` was called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch

from chainograd.torch_internals.settings import any_autocast


@dataclass(frozen=True, slots=True)
class Autocast:
    """The autocast state of one device type.

    Steps always run without the cache of cast weights: a cast that two steps shared would tie
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
    """Put the given autocast states in force for a block, without the cache."""
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
    """The caller's autocast, as it is where `backward()` was called.

    Gradients and hooks are computed under it. What the engine computes for itself on the way back
    (norms for its report, digests) is computed without autocast.

    Args:
        device_types: Types of devices in use.
    """

    def __init__(self, device_types: Iterable[str]) -> None:
        self.states: list[Autocast] = []
        if any_autocast():
            available = filter(torch.amp.is_autocast_available, device_types)
            self.states = [s for s in map(Autocast.current, available) if s.enabled]
        self.cached = torch.is_autocast_cache_enabled()

    def off(self) -> AbstractContextManager[object]:
        """Return a context without autocast."""
        return autocast_as([replace(state, enabled=False) for state in self.states])

    @contextmanager
    def on(self) -> Iterator[None]:
        """Put the caller's autocast in force for a block."""
        with ExitStack() as stack:
            for s in self.states:
                region = torch.autocast(s.device_type, s.dtype, cache_enabled=self.cached)
                stack.enter_context(region)
            yield
