"""Random streams that steps may draw from: where they stand, and put back there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import string_at
from dataclasses import dataclass

import torch
from torch import Generator
from torch.utils._mode_utils import no_dispatch

from chainograd.replay.host_rng import HostRNGState
from chainograd.tensors.devices import device_generators


class RNGSources:
    """The random streams that steps may draw from: the global ones, and named generators.

    Global are those of Python, of numpy, of torch on the CPU and on each accelerator in use.

    Args:
        devices: Devices in use; each accelerator has a global stream of its own.
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
        """Torch's generators of the global streams."""
        handed_out = [stream.generator() for stream in self.on_devices]
        return [torch.default_generator, *(g for g in handed_out if g is not None)]

    def state(self, since: RNGState | None = None) -> RNGState:
        """Return where the streams stand; ``since`` itself if nothing was drawn since then."""
        if torch._C._len_torch_dispatch_stack():
            with no_dispatch():  # these are real tensors, under FakeTensorMode too
                own = self._torchs()
        else:  # where a context of nothing would take as long as the rest
            own = self._torchs()
        host = HostRNGState.now(None if since is None else since.host)
        if since is not None and host is since.host and own == since.torch:
            return since
        return RNGState(own, host)

    def _torchs(self) -> list[bytes]:
        return [string_at(s.data_ptr(), s.nbytes) for s in [each.get_state() for each in self._all]]

    def set(self, state: RNGState) -> None:
        """Put the streams where they stood."""
        with no_dispatch():
            tensors = [torch.frombuffer(bytearray(own), dtype=torch.uint8) for own in state.torch]
        for each, own in zip(self._all, tensors, strict=True):
            each.set_state(own)
        state.host.put_back()


@dataclass(frozen=True, slots=True, eq=False)
class RNGState:
    """Where random streams stand; equal to another if nothing was drawn between the two.

    Attributes:
        torch: Torch's own, as text, which is compared faster than tensors.
        host: Python's and numpy's.
    """

    torch: list[bytes]
    host: HostRNGState

    def __eq__(self, other: object) -> bool:
        """Return whether all streams stand where they stand in the other."""
        if not isinstance(other, RNGState):
            return NotImplemented
        return self is other or (self.torch == other.torch and self.same_on_host(other))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def same_on_host(self, other: RNGState) -> bool:
        """Return whether nothing was drawn from Python's or numpy's stream between the two."""
        return self.host == other.host


@contextmanager
def fork_rng(rng: RNGSources) -> Iterator[None]:
    """Put the caller's streams back where they stood, however the block ends."""
    before = rng.state()
    try:
        yield
    finally:
        rng.set(before)


class Replayed:
    """A step's random streams, put in force for each part of the step that runs again.

    Entered again, they go on where they were left; outside, the caller's are as before.

    Args:
        rng: The streams.
        start: Where they stood before the step.
    """

    def __init__(self, rng: RNGSources, start: RNGState) -> None:
        self.rng, self.at = rng, start

    def __enter__(self) -> None:
        self.outside = self.rng.state()
        self.rng.set(self.at)

    def __exit__(self, *error: object) -> None:
        self.at = self.rng.state()
        self.rng.set(self.outside)
