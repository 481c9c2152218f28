"""Random streams that steps may draw from: where they stand, and put back there."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import string_at
from functools import partial
from typing import Any, NamedTuple

import numpy
import torch
from torch import Generator
from torch.utils._mode_utils import no_dispatch

# Note [Host streams]
# 1. To read where Python's and numpy's streams stand takes longer than much that the engine does
#    in a small step, and hardly any step draws from them. So they are read around step 0, for a
#    chain that draws at all mostly draws there, and around the whole forward pass.
# 2. If step 0 drew, they are read at every step from there on, and from then on in every call.
# 3. If they have moved in the end only, it is not known in which step: the forward pass is run
#    once more from where everything stood, and they are read at every step.


class RandomStreams:
    """The random streams that steps may draw from: the global ones, and named generators.

    Global are those of Python, of numpy, of torch on the CPU and on each CUDA device in use.

    Args:
        devices: Devices in use; each CUDA device has a global stream of its own.
        generators: Generators that the steps draw from.
    """

    def __init__(
        self, devices: Iterable[torch.device], generators: Sequence[Generator] = ()
    ) -> None:
        in_use = {d.index or 0 for d in devices if d.type == "cuda"}
        self.cuda = sorted(in_use) if torch.cuda.is_available() else []  # else they are fake
        self.generators = tuple(generators)
        self.closely = True  # note [Host streams]
        self._states = [
            torch.default_generator.get_state,
            *(partial(torch.cuda.get_rng_state, index) for index in self.cuda),
            *(generator.get_state for generator in self.generators),
        ]

    def state(self, since: Streams | None = None) -> Streams:
        """Return where the streams stand; ``since`` itself if nothing was drawn since then."""
        if torch._C._len_torch_dispatch_stack():
            with no_dispatch():  # these are real tensors, under FakeTensorMode too
                own = self._torchs()
        else:  # where a context of nothing would take as long as the rest
            own = self._torchs()
        still = since is not None and own == since.torch
        if since is None or self.closely:
            now = Streams(own, random.getstate(), numpy.random.get_state(legacy=False))
            return since if since is not None and still and since.same_on_host(now) else now
        return since if still else Streams(own, since.python, since.numpy)

    def _torchs(self) -> list[bytes]:
        return [string_at(s.data_ptr(), s.nbytes) for s in [state() for state in self._states]]

    def set(self, state: Streams) -> None:
        """Put the streams where they stood."""
        with no_dispatch():
            cpu, *rest = (
                torch.frombuffer(bytearray(own), dtype=torch.uint8) for own in state.torch
            )
        torch.set_rng_state(cpu)
        for index, device_state in zip(self.cuda, rest, strict=False):
            torch.cuda.set_rng_state(device_state, index)
        for generator, own in zip(self.generators, rest[len(self.cuda) :], strict=True):
            generator.set_state(own)
        random.setstate(state.python)
        numpy.random.set_state(state.numpy)


class Streams(NamedTuple):
    """Where random streams stand: torch's as text, which is compared faster than tensors."""

    torch: list[bytes]
    python: Any
    numpy: Any

    def same_on_host(self, other: Streams) -> bool:
        """Return whether nothing was drawn from Python's or numpy's stream between the two."""
        if self.python is other.python and self.numpy is other.numpy:
            return True
        return self.python == other.python and _equal(self.numpy, other.numpy)


def _equal(a: Any, b: Any) -> bool:
    """Return whether two nested dicts of numbers, text and arrays are the same."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return numpy.array_equal(a, b)


@contextmanager
def undisturbed(streams: RandomStreams) -> Iterator[None]:
    """Put the caller's streams back where they stood, however the block ends."""
    before = streams.state()
    try:
        yield
    finally:
        streams.set(before)


class Replayed:
    """A step's random streams, put in force for each part of the step that runs again.

    Entered again, they go on where they were left; outside, the caller's are as before.

    Args:
        streams: The streams.
        start: Where they stood before the step.
    """

    def __init__(self, streams: RandomStreams, start: Streams) -> None:
        self.streams, self.at = streams, start

    def __enter__(self) -> None:
        self.outside = self.streams.state()
        self.streams.set(self.at)

    def __exit__(self, *error: object) -> None:
        self.at = self.streams.state()
        self.streams.set(self.outside)
