"""Progress bars on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any


def bars(name: str) -> Callable[..., Iterable[Any]]:
    """Return what shows a bar of that name while a loop runs."""
    from tqdm import tqdm

    return partial(tqdm, desc=name)
