"""Integer arguments, of Python's type or of numpy's."""

from __future__ import annotations

import operator
from numbers import Integral


def is_integer(value: object) -> bool:
    """Return whether ``value`` is an integer of Python or numpy; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def as_integer(name: str, value: object) -> int:
    """Return the argument called ``name`` as a Python integer.

    Raises:
        TypeError: If ``value`` is not an integer.
    """
    if not is_integer(value):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    return operator.index(value)  # pyright: ignore[reportArgumentType]
