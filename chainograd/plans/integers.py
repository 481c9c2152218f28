"""Integers from outside, of Python or of numpy."""

from __future__ import annotations

import operator
from numbers import Integral


def is_integer(value: object) -> bool:
    """Return whether something is an integer, of Python or of numpy; a truth value is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def as_integer(name: str, value: object) -> int:
    """Return an argument that must be an integer as one of Python's.

    Raises:
        TypeError: If it is no integer.
    """
    if not is_integer(value):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    return operator.index(value)  # pyright: ignore[reportArgumentType]
