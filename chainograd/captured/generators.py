"""Generators that a step reaches and the chain was not told of: watched, so that none is missed."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from chainograd.errors import ReplayError

# Note [Unnamed generators]
# Noise may change a gradient and no value, as a random mask on a gradient does; then no comparison
# of states sees that a rerun drew other noise. So where the generators stand after a step's first
# run is remembered, and a rerun has to leave them there, as a step does that seeds them itself.

GENERATORS = (
    torch.Generator, numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator,
    random.Random,
)  # fmt: skip
_GLOBAL = (random._inst, numpy.random.mtrand._rand)  # type: ignore[attr-defined]


def is_own(generator: object) -> bool:
    """Return whether a generator is not one of the global streams, and tells where it stands."""
    is_global = any(generator is each for each in _GLOBAL)
    return not is_global and not isinstance(generator, random.SystemRandom)


class UnlistedGenerators:
    """The generators that steps reach and the chain was not told of.

    Attributes:
        generators: They.
        after: By the step, where they stood after its first run, if it moved them.
    """

    def __init__(self, found: Sequence[object], named: Sequence[object]) -> None:
        known = {id(generator) for generator in named}
        self.generators = [generator for generator in found if id(generator) not in known]
        self.after: dict[int, bytes] = {}
        self._last = self._stand()

    def ran(self, i: int) -> None:
        """Note where the generators stand after the first run of step i."""
        if self.generators:
            now = self._stand()
            if now != self._last:
                self.after[i] = self._last = now

    def ran_again(self, i: int) -> None:
        """See that a rerun of step i left the generators where its first run left them.

        Raises:
            ReplayError: If it did not.
        """
        if i in self.after and self._stand() != self.after[i]:
            kinds = " or ".join(sorted({_name(generator) for generator in self.generators}))
            raise ReplayError(
                f"Step {i} draws from a {kinds} that the chain does not know: run again, it draws "
                "other noise, and the gradient would be that of another chain. Name a torch "
                "generator, `CheckpointedChain(…, generators=[generator])`; in place of another "
                "kind draw from the global stream of its library, which is replayed, or seed it "
                "in every step."
            )

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Put the generators back where they stood, however the block ends."""
        before = [_state(generator) for generator in self.generators]
        try:
            yield
        finally:
            for generator, state in zip(self.generators, before, strict=True):
                _set_state(generator, state)

    def _stand(self) -> bytes:
        return pickle.dumps([_state(generator) for generator in self.generators])


def _state(generator: object) -> object:
    match generator:
        case torch.Generator():
            return generator.get_state().numpy().tobytes()
        case numpy.random.Generator():
            return generator.bit_generator.state
        case numpy.random.RandomState():
            return generator.get_state(legacy=False)
        case numpy.random.BitGenerator():
            return generator.state
        case random.Random():
            return generator.getstate()
    raise AssertionError(generator)


def _set_state(generator: Any, state: Any) -> None:
    match generator:
        case torch.Generator():
            generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
        case numpy.random.Generator():
            generator.bit_generator.state = state
        case numpy.random.RandomState():
            generator.set_state(state)
        case numpy.random.BitGenerator():
            generator.state = state
        case random.Random():
            generator.setstate(state)


def _name(generator: object) -> str:
    cls = type(generator)
    return f"`{cls.__module__.partition('.')[0].lstrip('_')}.{cls.__name__}`"
