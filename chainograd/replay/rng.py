"""The random streams that steps may draw from: their states, saved and restored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import string_at
from dataclasses import dataclass

import torch
from torch import Generator

from chainograd.replay.host_rng import HostRNGState
from chainograd.tensors.devices import device_generators
from chainograd.torch_internals.modes import dispatch_modes, no_dispatch


class RNGSources:
    """The random streams that steps may draw from: the global streams, and named generators.

    The global streams are Python's, numpy's, and torch's on the CPU and on each accelerator in use.

    Args:
        devices: Devices in use.
        generators: Generators that the steps draw from, on any device.

    Attributes:
        on_devices: The global streams of the accelerators.
    """

    def __init__(
        self, devices: Iterable[torch.device], generators: Sequence[Generator] = ()
    ) -> None:
        self.on_devices = device_generators(devices)
        self.generators = tuple(generators)
        self._all = [torch.default_generator, *self.on_devices, *self.generators]

    @property
    def defaults(self) -> list[Generator]:
        """The generators of torch's global streams."""
        known = [stream.generator() for stream in self.on_devices]
        return [torch.default_generator, *(g for g in known if g is not None)]

    def state(self, since: RNGState | None = None) -> RNGState:
        """Return the states now; ``since`` itself if nothing was drawn since then."""
        if dispatch_modes():
            with no_dispatch():  # the states are real tensors, even under FakeTensorMode
                own = self._torchs()
        else:  # without the context, which takes as long as reading the states
            own = self._torchs()
        host = HostRNGState.now(None if since is None else since.host)
        if since is not None and host is since.host and own == since.torch:
            return since
        return RNGState(own, host)

    def _torchs(self) -> list[bytes]:
        return [string_at(s.data_ptr(), s.nbytes) for s in [each.get_state() for each in self._all]]

    def set(self, state: RNGState) -> None:
        """Set all streams to these states."""
        with no_dispatch():
            tensors = [torch.frombuffer(bytearray(own), dtype=torch.uint8) for own in state.torch]
        for each, own in zip(self._all, tensors, strict=True):
            each.set_state(own)
        state.host.put_back()


@dataclass(frozen=True, slots=True, eq=False)
class RNGState:
    """The states of random streams; two are equal if nothing was drawn between them.

    Attributes:
        torch: The states of torch's streams, as bytes, which are compared faster than tensors.
        host: The states of Python's and numpy's streams.
    """

    torch: list[bytes]
    host: HostRNGState

    def __eq__(self, other: object) -> bool:
        """Return whether all states are equal to the other's."""
        if not isinstance(other, RNGState):
            return NotImplemented
        return self is other or (self.torch == other.torch and self.same_on_host(other))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def same_on_host(self, other: RNGState) -> bool:
        """Return whether the states of Python's and numpy's streams are equal to the other's."""
        return self.host == other.host


@contextmanager
def fork_rng(rng: RNGSources) -> Iterator[None]:
    """Restore the states of all streams when the block ends, even by an exception."""
    before = rng.state()
    try:
        yield
    finally:
        rng.set(before)


class Replayed:
    """A context that replays a step's random streams; outside it the caller's states remain.

    It may be entered once for each slice of a step: each slice continues where the last one ended.

    Args:
        rng: The streams.
        start: Their states before the step.
    """

    def __init__(self, rng: RNGSources, start: RNGState) -> None:
        self.rng, self.at = rng, start

    def __enter__(self) -> None:
        self.outside = self.rng.state()
        self.rng.set(self.at)

    def __exit__(self, *error: object) -> None:
        self.at = self.rng.state()
        self.rng.set(self.outside)
