"""The level of every step of a plan: the fastest that leave the plan within a budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from chainograd.plans.costs import Bytes, PriceList
from chainograd.plans.holding import holding
from chainograd.plans.levels import Level
from chainograd.plans.program import BACKPROP, RECORD, Codes, Program, indices_of, kinds_of

# Note [Levels of reruns]
# A step that runs again holds its graph from its `Record` to its `Backprop`, and at no other time.
# So its level can be chosen alone: the fastest at which no action in between needs too much. As
# the backward pass frees what is kept, the steps that it comes to last have the most room. (If
# attention's outputs are kept in the forward pass, they are held all the time; steps for which
# there is no room even so are cut into blocks, and keep nothing.)


def with_levels(
    program: Program, kept: NDArray[np.uint8], prices: PriceList, limit: int, *, attention: bool
) -> Program | None:
    """Return a program whose reruns are at the fastest levels that fit, or None if one has none.

    What the program holds at other times may still exceed the budget.

    Args:
        program: The program.
        kept: For each step, the level of its graph if the forward pass records it.
        prices: What graphs cost at each level.
        limit: The budget, in bytes on the device.
        attention: Whether steps that run again whole are given attention's outputs.
    """
    first = program.recorded_first
    begins, ends, steps = _windows(program)
    whole = Level.ATTENTION if attention else Level.WHOLE
    levels = np.where(first, kept, whole).astype(np.uint8)
    choices = [whole, *(level for level in prices.levels if Level.BLOCKS in level)]
    chosen = np.full(program.num_steps, 255, dtype=np.uint8)
    for level in _slowest_first(choices, prices):
        levels[steps] = level
        trial = replace(program, levels=levels.tobytes())
        held = holding(trial, prices.of(trial)).bytes
        most = _most(held, begins, ends)
        chosen[steps[most <= limit]] = level
    if (chosen[steps] == 255).any():
        return None
    levels[steps] = chosen[steps]
    return replace(program, levels=levels.tobytes())


def _slowest_first(choices: list[Level], prices: PriceList) -> list[Level]:
    return sorted(choices, key=lambda level: -float(prices.backward[level, 0].sum()))


def _windows(program: Program) -> tuple[Bytes, Bytes, Codes]:
    """Return where each step is recorded again, where its graph is freed, and the step."""
    codes = program.backward
    kinds, i, turn = kinds_of(codes), indices_of(codes), len(program.forward)
    begins, ends = np.flatnonzero(kinds == RECORD), np.flatnonzero(kinds == BACKPROP)
    freed = np.zeros(program.num_steps, dtype=np.int64)
    freed[i[ends]] = ends
    steps = i[begins]
    return begins + turn, freed[steps] + turn, steps


def _most(held: Bytes, begins: Bytes, ends: Bytes) -> Bytes:
    """Return the most of ``held`` in each window, both ends included."""
    if not len(begins):
        return np.zeros(0, dtype=np.int64)
    edges = np.stack([begins, ends + 1], axis=1).ravel()
    order = np.append(held, 0)
    return np.array([order[a:b].max() for a, b in edges.reshape(-1, 2).tolist()])
