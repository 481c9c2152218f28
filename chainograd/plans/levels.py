"""Levels: how much of a step's graph is held at once, and whether attention runs again."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntFlag


class Level(IntFlag):
    """How the graph of one step is made; the flags combine.

    ``WHOLE``: a recorded graph holds what all of its operations save, and nothing runs again on the
    way back. ``BLOCKS``: it holds the inputs of the step's blocks, and what operations between the
    blocks save; on the way back each block runs once more, with its graph. With ``ATTENTION`` it
    holds the outputs of attention too, and attention does not run again.

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
