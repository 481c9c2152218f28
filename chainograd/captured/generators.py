"""Generators that a step draws from and that `generators=` does not name: watched, then refused."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from chainograd.errors import ReplayError

# Note [Unlisted generators]
# Noise can change a gradient and no value, as a random mask on a gradient does. Then no comparison
# of states shows that a rerun drew other noise. So the chain notes the states of the generators
# after a step's first run, and requires the same states after a rerun. A step that seeds its
# generators itself meets that.

GENERATORS = (
    torch.Generator, numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator,
    random.Random,
)  # fmt: skip
_GLOBAL = (random.random.__self__, numpy.random.random_sample.__self__)  # pyright: ignore


def is_own(generator: object) -> bool:
    """Return whether a generator has a state that can be read and is not a global stream."""
    is_global = any(generator is each for each in _GLOBAL)
    return not is_global and not isinstance(generator, random.SystemRandom)


class UnlistedGenerators:
    """The generators that steps reach and that `generators=` does not name.

    Args:
        found: All generators that the steps reach.
        named: The generators that `generators=` names.

    Attributes:
        generators: The others.
        after: Their states after the first run of each step that drew from them, by the step.
    """

    def __init__(self, found: Sequence[object], named: Sequence[object]) -> None:
        known = {id(generator) for generator in named}
        self.generators = [generator for generator in found if id(generator) not in known]
        self.after: dict[int, bytes] = {}
        self._last = self._states()

    def ran(self, i: int) -> None:
        """Note the states of the generators after the first run of step i."""
        if self.generators:
            now = self._states()
            if now != self._last:
                self.after[i] = self._last = now

    def ran_again(self, i: int) -> None:
        """Check that a rerun of step i left the generators in the states of its first run.

        Raises:
            ReplayError: If it left them in other states.
        """
        if i in self.after and self._states() != self.after[i]:
            classes = " or ".join(sorted({_name(generator) for generator in self.generators}))
            raise ReplayError(
                f"Step {i} drew other noise when it ran again: it draws from a {classes} that "
                "`generators` does not name. The gradient would belong to other noise than the "
                "result. If it is a generator of torch, name it: `CheckpointedChain(…, "
                "generators=[generator])`. In place of any other generator, draw from the global "
                "stream of its library, which the chain replays, or seed the generator in every "
                "step."
            )

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Restore the states of the generators when the block ends, even by an exception."""
        before = [_state(generator) for generator in self.generators]
        try:
            yield
        finally:
            for generator, state in zip(self.generators, before, strict=True):
                _set_state(generator, state)

    def _states(self) -> bytes:
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
