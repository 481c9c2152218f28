"""The states of Python's and numpy's global random streams, read in a microsecond.

Both states are read after every step, and hardly any step draws from these streams. The public
functions take longer than a small step, because they build an object for each of 624 words.
"""

from __future__ import annotations

import random
import struct
import sys
from ctypes import string_at
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy

# Note [Words in memory]
# 1. Both streams are Mersenne Twisters: 624 words and a position. Every draw moves the position,
#    with one exception. Normal numbers are made in pairs, and the second of a pair is kept for the
#    next draw: by Python in the attribute `gauss_next`, by numpy where only `get_state` shows it.
# 2. So a stream has moved if its words, its position or `gauss_next` have changed. If numpy has
#    kept a number, `get_state` is called too. Numpy keeps a number only when it draws.
# 3. The address of numpy's words is part of numpy's documented interface; the address of Python's
#    follows from the layout of CPython's object. An address is used only if it holds what the
#    public function returns; otherwise the public function is called each time.

_PYTHONS: Any = random.random.__self__  # pyright: ignore[reportFunctionMemberAccess]
_WORDS = 624
_SIZE = 4 * (_WORDS + 1)
Address = int | None


@dataclass(frozen=True, slots=True, eq=False)
class HostRNGState:
    """The states of Python's and numpy's global streams.

    Attributes:
        words: What the next draw changes, unless numpy has kept a number for it.
        python: The state that `random.getstate` returns.
        numpy: The state that `numpy.random.get_state` returns.
    """

    words: tuple[Any, ...]
    python: Any
    numpy: Any

    @classmethod
    def now(cls, since: HostRNGState | None = None) -> HostRNGState:
        """Return the states now; ``since`` itself if nothing was drawn since then."""
        words = _words()
        if since is not None and words == since.words and not since.numpy["has_gauss"]:
            return since  # note [Words in memory], 2
        now = cls(words, random.getstate(), numpy.random.get_state(legacy=False))
        return since if since is not None and now == since else now

    def put_back(self) -> None:
        """Set both streams to these states."""
        if HostRNGState.now(self) is self:  # setting them takes as long as a small step
            return
        random.setstate(self.python)
        numpy.random.set_state(self.numpy)

    def __eq__(self, other: object) -> bool:
        """Return whether both states are equal to the other's."""
        if not isinstance(other, HostRNGState):
            return NotImplemented
        return self is other or (self.python == other.python and _same(self.numpy, other.numpy))

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _same(a: Any, b: Any) -> bool:
    """Return whether two nested dicts of numbers, text and arrays are equal."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return numpy.array_equal(a, b)


def _words() -> tuple[Any, ...]:
    """Return what the next draw changes: note [Words in memory]."""
    python, of_numpy = _address_of_python(), _address_of_numpy(_bit_generator())
    return (
        random.getstate() if python is None else string_at(python, _SIZE),
        _PYTHONS.gauss_next,
        _as_bytes(numpy.random.get_state(legacy=False))
        if of_numpy is None
        else string_at(of_numpy, _SIZE),
    )


def _as_bytes(state: Any) -> Any:
    """Return a state of numpy with its arrays as bytes, so that two states can be compared."""
    if isinstance(state, dict):
        return {key: _as_bytes(value) for key, value in state.items()}
    return state.tobytes() if isinstance(state, numpy.ndarray) else state


@cache
def _address_of_python() -> Address:
    """Return where CPython keeps the words of `random`'s stream: behind the object's header."""
    header = object.__basicsize__
    if sys.implementation.name != "cpython" or random.Random.__basicsize__ < header + _SIZE:
        return None
    _, (*key, position), _ = random.getstate()
    there = id(_PYTHONS) + header
    expected = struct.pack(f"=i{_WORDS}I", position, *key)
    return there if string_at(there, _SIZE) == expected else None


def _bit_generator() -> Any:
    """Return the bit generator of numpy's global stream; None if numpy does not expose it."""
    get = getattr(numpy.random, "get_bit_generator", None)
    return None if get is None else get()


@lru_cache(maxsize=1)
def _address_of_numpy(source: Any) -> Address:
    """Return where numpy keeps the words of its global stream."""
    if type(source) is not numpy.random.MT19937:  # another generator, or numpy before 1.24
        return None
    inner = source.state["state"]
    expected = struct.pack(f"={_WORDS}Ii", *inner["key"].tolist(), inner["pos"])
    there = source.ctypes.state_address
    return there if string_at(there, _SIZE) == expected else None
