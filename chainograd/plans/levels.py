"""Levels: how much of a step's graph is held at once, and whether attention runs again."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntFlag


class Level(IntFlag):
    """How the graph of one step is made; the flags combine.

    level                 a recorded graph holds                   on the way back
    WHOLE                 what all of its operations save          nothing runs again
    BLOCKS                the inputs of its blocks, and what       each block runs once more,
                          operations between the blocks save       with its graph
    ... | ATTENTION       also the outputs of attention            attention does not run again

    A step with ATTENTION and without BLOCKS keeps attention's outputs in the forward pass, so its
    rerun does without them.
    """

    WHOLE = 0
    BLOCKS = 1
    ATTENTION = 2


LEVELS = tuple(Level(code) for code in range(4))


def level_name(level: Level, *, kept: bool) -> str:
    """Return a level's name.

    Args:
        level: The level.
        kept: Whether the step's graph is kept from the forward pass to the backward pass.

    Example:
        >>> level_name(Level.BLOCKS | Level.ATTENTION, kept=True)
        'skeleton+attention'
    """
    names = ("graph", "skeleton") if kept else ("node", "blocks")
    name = names[Level.BLOCKS in level]
    return f"{name}+attention" if Level.ATTENTION in level and name != "graph" else name


def encoded_levels(levels: Iterable[Level]) -> bytes:
    """Return levels as codes, one byte each."""
    return bytes(int(level) for level in levels)
