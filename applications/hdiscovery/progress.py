"""How long work says how far it is. The functions of the API are silent unless they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Bars = Callable[[str], Callable[..., Iterable[Any]]]
"""Makes a bar of a name. A bar wraps the iterable of a loop, as ``tqdm`` does."""


def silent(name: str) -> Callable[..., Iterable[Any]]:
    """Return a bar that shows nothing."""
    return iter


def counted(bar: Callable[..., Iterable[Any]], total: int) -> Callable[..., Iterator[Any]]:
    """Return a bar that knows how many items come, for an iterable that does not."""

    def wrap(items: Iterable[Any]) -> Iterator[Any]:
        for item, _ in zip(items, bar(range(total)), strict=False):
            yield item

    return wrap
