"""Progress bars on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any


def bars(name: str) -> Callable[..., Iterable[Any]]:
    """Return what shows a bar of that name while a loop runs."""
    from tqdm import tqdm

    return partial(tqdm, desc=name)


def bar(
    records: Iterable[dict[str, Any]],
    total: int,
    shown: tuple[str, ...] = ("L_G", "shift_error", "accuracy"),
) -> Iterator[dict[str, Any]]:
    """Show a bar that a training's records move, with some of their values beside it."""
    from tqdm import tqdm

    with tqdm(desc="training", total=total) as line:
        for record in records:
            line.update(record["step"] + 1 - line.n)
            line.set_postfix({name: f"{record[name]:.3f}" for name in shown})
            yield record
