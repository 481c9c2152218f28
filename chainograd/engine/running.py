"""Which step runs now in a thread, and whether its graph is being cut."""

from __future__ import annotations

import threading


class _Running(threading.local):
    """What cuts the steps that run now in a thread, one inside the other; None for whole ones."""

    def __init__(self) -> None:
        self.cutters: list[object] = []


_running = _Running()


class cutting:  # noqa: N801, as contexts are written
    """Lets a cutter, and no other, cut what runs in a block; None lets nothing be cut."""

    __slots__ = ("cutter",)

    def __init__(self, cutter: object) -> None:
        self.cutter = cutter

    def __enter__(self) -> None:
        _running.cutters.append(self.cutter)

    def __exit__(self, *error: object) -> None:
        _running.cutters.pop()


def cuts_now(cutter: object) -> bool:
    """Return whether a cutter cuts what runs now in this thread."""
    return bool(_running.cutters) and _running.cutters[-1] is cutter
