"""Where Python's and numpy's global random streams stand, read in a microsecond.

Both are asked after every step, and hardly any step draws from them. To ask by the public way
takes longer than a small step: both then build an object for each of 624 words.
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
# 1. Both streams are Mersenne Twisters: 624 words and a position. Every number drawn moves the
#    position, except a normal number of which two were made together: the second is left over, by
#    Python in the attribute `gauss_next`, by numpy where only `get_state` shows it.
# 2. So streams have moved if words, position or `gauss_next` have. And if numpy had a number left
#    over, `get_state` is asked. It gets one left over only by drawing.
# 3. Where the words lie is taken from numpy's documented interface, and from the layout of
#    CPython's object. Both places are believed only if they hold what the public way returns;
#    otherwise the public way is used each time.

_WORDS = 624
_SIZE = 4 * (_WORDS + 1)
Place = int | None  # an address


@dataclass(frozen=True, slots=True, eq=False)
class HostRNGState:
    """Where Python's and numpy's global streams stand.

    Attributes:
        words: What changes with the next number drawn, but for one that numpy has left over.
        python: As `random.getstate` returns it.
        numpy: As `numpy.random.get_state` returns it.
    """

    words: tuple[Any, ...]
    python: Any
    numpy: Any

    @classmethod
    def now(cls, since: HostRNGState | None = None) -> HostRNGState:
        """Return where the streams stand; ``since`` itself if nothing was drawn since then."""
        words = _words()
        if since is not None and words == since.words and not since.numpy["has_gauss"]:
            return since  # note [Words in memory], 2
        now = cls(words, random.getstate(), numpy.random.get_state(legacy=False))
        return since if since is not None and now == since else now

    def put_back(self) -> None:
        """Put the streams where they stood."""
        if HostRNGState.now(self) is self:  # the public way takes as long as a small step
            return
        random.setstate(self.python)
        numpy.random.set_state(self.numpy)

    def __eq__(self, other: object) -> bool:
        """Return whether both streams stand where they stand in the other."""
        if not isinstance(other, HostRNGState):
            return NotImplemented
        return self is other or (self.python == other.python and _same(self.numpy, other.numpy))

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _same(a: Any, b: Any) -> bool:
    """Return whether two nested dicts of numbers, text and arrays are the same."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return numpy.array_equal(a, b)


def _words() -> tuple[Any, ...]:
    """Return what changes with the next number drawn: note [Words in memory]."""
    python, of_numpy = _place_of_python(), _place_of_numpy(_bit_generator())
    return (
        random.getstate() if python is None else string_at(python, _SIZE),
        random._inst.gauss_next,  # pyright: ignore[reportAttributeAccessIssue]
        _as_text(numpy.random.get_state(legacy=False))
        if of_numpy is None
        else string_at(of_numpy, _SIZE),
    )


def _as_text(state: Any) -> Any:
    """Return a state of numpy's in which arrays are text, so that two can be compared."""
    if isinstance(state, dict):
        return {key: _as_text(value) for key, value in state.items()}
    return state.tobytes() if isinstance(state, numpy.ndarray) else state


@cache
def _place_of_python() -> Place:
    """Return where CPython keeps the words of `random`'s stream: behind the object's head."""
    head = object.__basicsize__
    if sys.implementation.name != "cpython" or random.Random.__basicsize__ < head + _SIZE:
        return None
    _, (*key, position), _ = random.getstate()
    there = id(random._inst) + head  # pyright: ignore[reportAttributeAccessIssue]
    expected = struct.pack(f"=i{_WORDS}I", position, *key)
    return there if string_at(there, _SIZE) == expected else None


def _bit_generator() -> Any:
    """Return what numpy's global stream is made by; None where numpy does not tell."""
    get = getattr(numpy.random, "get_bit_generator", None)
    return None if get is None else get()


@lru_cache(maxsize=1)
def _place_of_numpy(source: Any) -> Place:
    """Return where numpy keeps the words of its global stream."""
    if type(source) is not numpy.random.MT19937:  # another, or a numpy before 1.24
        return None
    inner = source.state["state"]
    expected = struct.pack(f"={_WORDS}Ii", *inner["key"].tolist(), inner["pos"])
    there = source.ctypes.state_address
    return there if string_at(there, _SIZE) == expected else None
