"""Algorithm 799, revolve: the plan with the fewest step evaluations for a number of nodes."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np

from chainograd.plans.integers import as_integer
from chainograd.plans.plan import Plan
from chainograd.plans.planners import as_num_steps
from chainograd.plans.program import (
    ADVANCE,
    BACKPROP,
    DROP,
    KEEP,
    LOAD,
    RECORD,
    WIDTH,
    Codes,
    Program,
    codes,
    kinds_of,
)


def binomial(num_steps: int, *, slots: int) -> Plan:
    """Return the plan with the fewest step evaluations for a given number of nodes.

    The plan takes (r+1) M - C(s+r, s+1) evaluations, with the smallest r for which
    C(s+r, s) >= M, and the memory of s nodes and one step's graph.

    Args:
        num_steps: M, at least 1.
        slots: s, the most nodes that the plan may hold at once, at least 1. The chain's input is
            one of these nodes.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is not an integer.

    References:
        Griewank and Walther (2000), Algorithm 799: revolve.

    Example:
        >>> binomial(10, slots=9).evaluations
        19
        >>> binomial(10, slots=1).evaluations
        55
    """
    num_steps, slots = as_num_steps(num_steps), as_integer("slots", slots)
    if slots < 1:
        raise ValueError(f"`slots` must be at least 1, for the chain's input, got {slots}.")
    return binomials(num_steps)(slots)


def binomials(num_steps: int) -> Callable[[int], Plan]:
    """Return a function that makes the binomial plan for a number of slots.

    The plans share segments, so making many of them this way is cheaper than one by one.
    """
    known: dict[tuple[int, int], Codes] = {}

    def make(slots: int) -> Plan:
        actions = np.append(codes(KEEP, 0, 1), _segment(num_steps, slots, known))
        turn = int(np.argmax(kinds_of(actions) == BACKPROP))
        return Plan.of(Program(num_steps, actions[:turn], actions[turn:]))

    return make


def _segment(length: int, slots: int, known: dict[tuple[int, int], Codes]) -> Codes:
    """Return the actions that reverse steps 0 to ``length - 1``.

    State 0 is a node and the current state. A binomial plan consists of segments of few different
    lengths, so each is made once and stored in ``known``.
    """
    key = length, min(slots, length)
    if key in known:
        return known[key]
    there, back = [], []
    start = 0
    while slots > 1 and length > 1:
        part = first_part(length, slots)
        if part == 1:
            count = _ones(length, slots)
            there.append(_rows(start, count, (ADVANCE, WIDTH + KEEP)).ravel())
            back.append(_rows(start, count, (LOAD, RECORD, BACKPROP, DROP))[::-1].ravel())
            part = count
            slots -= count
        else:
            middle = start + part
            there += [codes(ADVANCE, start, middle), codes(KEEP, middle, middle + 1)]
            first = _segment(part, slots, known)
            back += [first + WIDTH * start if start else first, codes(LOAD, start, start + 1)]
            slots -= 1
        start, length = start + part, length - part
    last = _from_one_node(length) + WIDTH * start
    known[key] = np.concatenate([*there, last, *reversed(back)])
    return known[key]


def _ones(length: int, slots: int) -> int:
    """Return how many nodes an optimal plan keeps one step apart, while `first_part` is 1."""
    done = np.arange(min(length, slots) - 1)
    s = slots - done
    enough = length - done - 1 <= s * (s + 1) // 2
    return len(done) if enough.all() else int(np.argmin(enough))


def _rows(start: int, count: int, kinds: tuple[int, ...]) -> Codes:
    """Return one row of actions for each of ``count`` steps."""
    steps = codes(0, start, start + count)
    return steps[:, None] + np.array(kinds, dtype=np.int32)


def _from_one_node(length: int) -> Codes:
    """Return the actions that reverse steps 0 to ``length - 1`` with state 0 as the only node."""
    steps = np.arange(length, dtype=np.int32)[::-1]
    sizes = steps + 3  # Load(0), the steps before, Record, Backprop
    ends = np.cumsum(sizes)
    begins = (ends - sizes).astype(np.int32)
    place = np.arange(ends[-1], dtype=np.int32) - np.repeat(begins, sizes) - 1
    result = WIDTH * place + ADVANCE
    result[begins] = LOAD
    result[ends - 2] = WIDTH * steps + RECORD
    result[ends - 1] = WIDTH * steps + BACKPROP
    return np.append(result[1:], DROP)  # state 0 is current already


def first_part(length: int, slots: int) -> int:
    """Return how many steps an optimal plan runs before it keeps the next node.

    With b(s, r) = C(s+r, s) and the smallest r for which b(s, r) >= length, the first part has at
    most b(s, r-1) steps and the second part at most b(s-1, r).
    """
    r = repetitions(length, slots)
    least = comb(slots + r - 2, slots) if r >= 2 else 0
    return max(least, length - comb(slots - 1 + r, slots - 1), 1)


def repetitions(length: int, slots: int) -> int:
    """Return r, how often a step is run again at most: the smallest with C(s+r, s) >= length."""
    r = 0
    while comb(slots + r, slots) < length:
        r += 1
    return r
