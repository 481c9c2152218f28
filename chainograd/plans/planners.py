"""Planners: which nodes and graphs to keep, for a number of steps. No tensors here.

plan                kept                               step evaluations
nodes(M)            M nodes, 1 graph                   2M - 1
keep_last(M, k)     M nodes, the last k graphs         2M - k
graph(M)            M graphs                           M
binomial(M, s)      s nodes, 1 graph                   (r+1) M - C(s+r, s+1)
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Collection
from math import comb
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from chainograd.plans.actions import (
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
    indices_of,
    kinds_of,
)
from chainograd.plans.integers import as_integer, is_integer
from chainograd.plans.plan import Plan

PlanName = Literal["nodes", "graph"]


def nodes(num_steps: int) -> Plan:
    """Return the paper's plan: keep every node, and the graph of the last step.

    Costs 2M-1 evaluations (the last step's graph is still there when the backward pass begins)
    and the memory of M nodes and one step's graph.

    References:
        Zhang et al. (2023), section 4.4 and Algorithm 1, which replay the last step too: 2M.
    """
    return keep_last(num_steps, 1)


def graph(num_steps: int) -> Plan:
    """Return the plan of the plain loop: keep every graph, run nothing again.

    Costs M evaluations and the memory of M graphs.
    """
    return keep_last(num_steps, num_steps)


def keep_last(num_steps: int, k: int) -> Plan:
    """Return the plan that keeps every node and the graphs of the last ``k`` steps.

    The last ones, because their graphs are the first that the backward pass frees: what is alive
    never exceeds what is alive at the turn by more than one step's graph. Costs 2M-k evaluations,
    the fewest with k graphs at the turn.

    Args:
        num_steps: M, at least 1.
        k: Graphs to keep, 1 to M.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is no integer.

    Example:
        >>> keep_last(10, 3).evaluations
        17
    """
    num_steps, k = _steps(num_steps), as_integer("k", k)
    if not 1 <= k <= num_steps:
        raise ValueError(f"`k` must lie in 1 … `num_steps` = {num_steps}, got {k}.")
    return keep_graphs(num_steps, range(num_steps - k, num_steps))


def keep_graphs(num_steps: int, kept: Collection[int]) -> Plan:
    """Return the plan that keeps every node and the graphs of the steps in ``kept``."""
    recorded = _marked(num_steps, list(kept))
    steps = codes(0, 0, num_steps)
    forward = np.stack([steps + KEEP, steps + np.where(recorded, RECORD, ADVANCE)], axis=1)
    # A node is dropped when it has been compared with what its step gave the second time.
    rows = np.stack([steps + LOAD, steps + RECORD, steps + WIDTH + DROP, steps + BACKPROP], axis=1)
    there = np.ones(rows.shape, dtype=bool)
    there[recorded, :2] = False
    there[-1, 2] = False
    backward = np.append(rows[::-1][there[::-1]], DROP)
    return Plan.of(Program(num_steps, forward.ravel(), backward))


def binomial(num_steps: int, *, slots: int) -> Plan:
    """Return the plan that needs the fewest step evaluations with a given number of nodes.

    Costs (r+1) M - C(s+r, s+1) evaluations, with the least r for which C(s+r, s) >= M, and the
    memory of s nodes and one step's graph.

    Args:
        num_steps: M, at least 1.
        slots: s, how many nodes may be kept at once, at least 1. The chain's input is one of them.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is no integer.

    References:
        Griewank and Walther (2000), Algorithm 799: revolve.

    Example:
        >>> binomial(10, slots=9).evaluations
        19
        >>> binomial(10, slots=1).evaluations
        55
    """
    num_steps, slots = _steps(num_steps), as_integer("slots", slots)
    if slots < 1:
        raise ValueError(f"`slots` must be at least 1 (the chain's input), got {slots}.")
    return binomials(num_steps)(slots)


def binomials(num_steps: int) -> Callable[[int], Plan]:
    """Return what makes binomial plans by their slots, and what they share only once."""
    known: dict[tuple[int, int], Codes] = {}

    def make(slots: int) -> Plan:
        actions = np.append(codes(KEEP, 0, 1), _segment(num_steps, slots, known))
        turn = int(np.argmax(kinds_of(actions) == BACKPROP))
        return Plan.of(Program(num_steps, actions[:turn], actions[turn:]))

    return make


def _segment(length: int, slots: int, known: dict[tuple[int, int], Codes]) -> Codes:
    """Return the actions that reverse steps 0 to ``length - 1``.

    State 0 is kept and current. The segments that a binomial plan falls into are of a few lengths
    only, so each kind is made once.
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
    """Return how many nodes in turn an optimal plan keeps one step apart: `first_part` is 1."""
    done = np.arange(min(length, slots) - 1)
    s = slots - done
    enough = length - done - 1 <= s * (s + 1) // 2
    return len(done) if enough.all() else int(np.argmin(enough))


def _rows(start: int, count: int, kinds: tuple[int, ...]) -> Codes:
    """Return a row of actions for each of ``count`` steps."""
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
    return np.append(result[1:], DROP)  # state 0 is the current one at first


def restricted(plan: Plan, steps: frozenset[int]) -> Plan:
    """Return the plan without what serves other steps' gradients than those of ``steps``.

    Its cotangent passes the other steps without a graph, as their states get no gradient.
    """
    M, program = plan.num_steps, plan.program
    passed = _marked(M, list(steps))
    backward, before, needed = program.backward, -1, passed
    while len(backward) != before:  # a node that is loaded no more need not be led to either
        before = len(backward)
        needed = passed | _marked(M, indices_of(backward[kinds_of(backward) == LOAD]))
        backward = backward[(kinds_of(backward) != KEEP) | needed[indices_of(backward)]]
        backward = _without_unused(backward, passed)

    kinds, i = kinds_of(program.forward), indices_of(program.forward)
    forward = np.where((kinds == RECORD) & ~passed[i], WIDTH * i + ADVANCE, program.forward)
    forward = forward[(kinds != KEEP) | needed[i]]
    both = np.concatenate([forward, backward])
    kept = _marked(M, indices_of(both[kinds_of(both) == KEEP]))
    backward = backward[(kinds_of(backward) != DROP) | kept[indices_of(backward)]]
    return Plan.of(Program(M, forward, backward), plan.costs)


def _without_unused(backward: Codes, passed: NDArray[np.bool_]) -> Codes:
    """Leave out steps that need no graph, and the loads and runs that lead to nothing else."""
    kinds, i = kinds_of(backward), indices_of(backward)
    used = (kinds == KEEP) | ((kinds == RECORD) & passed[i])
    stops = used | (kinds == RECORD) | (kinds == LOAD)  # how far a load or a run can lead
    leads_to = np.append(np.flatnonzero(stops), len(kinds))[np.cumsum(stops)]
    leading = (kinds == LOAD) | (kinds == ADVANCE)
    return backward[np.where(leading, np.append(used, False)[leads_to], used | (kinds != RECORD))]


def _marked(count: int, indices: Codes | list[int]) -> NDArray[np.bool_]:
    marked = np.zeros(count, dtype=bool)
    marked[indices] = True
    return marked


def without_graphs(plan: Plan) -> Plan:
    """Return the plan that keeps no graph at the turn: every step is recorded on the way back.

    Raises:
        ValueError: If no node is kept from which such a step can run again.
    """
    forward, backward = plan.program.forward, plan.program.backward
    kinds, indices = kinds_of(forward), indices_of(forward)
    kept = sorted(indices[kinds == KEEP].tolist())
    recorded = indices[kinds == RECORD]
    back, i = kinds_of(backward), indices_of(backward)
    ends = np.flatnonzero((back == BACKPROP) & np.isin(i, recorded))
    nodes = np.flatnonzero((back == KEEP) | (back == DROP))
    added: list[int] = []
    places: list[int] = []
    for position in np.sort(np.concatenate([ends, nodes[nodes < ends.max(initial=0)]])).tolist():
        j, kind = divmod(int(backward[position]), WIDTH)
        place = bisect_right(kept, j) - 1
        if kind == KEEP:
            kept.insert(place + 1, j)
        elif kind == DROP:
            del kept[place]
        elif place < 0:
            raise ValueError(
                f"`plan` keeps no state from which step {j} could run again, so it cannot do "
                "without its graph."
            )
        else:
            start = kept[place]
            runs = [WIDTH * step + ADVANCE for step in range(start, j)]
            added += [WIDTH * start + LOAD, *runs, WIDTH * j + RECORD]
            places += [position] * (len(runs) + 2)
    forward = np.where(kinds == RECORD, WIDTH * indices + ADVANCE, forward)
    backward = np.insert(backward, places, added)
    return Plan.of(Program(plan.num_steps, forward, backward), plan.costs)


def first_part(length: int, slots: int) -> int:
    """Return how many steps to run before the next node is kept, in an optimal plan.

    With b(s, r) = C(s+r, s) and the least r for which b(s, r) >= length, both parts are as long as
    they may be: the first within b(s, r-1), the second within b(s-1, r).
    """
    r = repetitions(length, slots)
    least = comb(slots + r - 2, slots) if r >= 2 else 0
    return max(least, length - comb(slots - 1 + r, slots - 1), 1)


def repetitions(length: int, slots: int) -> int:
    """Return r, the most often that a step is run again: the least with C(s+r, s) >= length."""
    r = 0
    while comb(slots + r, slots) < length:
        r += 1
    return r


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_bytes(budget: int | str) -> int:
    """Return a number of bytes.

    Raises:
        ValueError: If it cannot be read or is not positive.

    Example:
        >>> parse_bytes("1.5 GiB")
        1610612736
    """
    if is_integer(budget) and (count := as_integer("plan", budget)) > 0:
        return count
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*((?:[KMGT]I?)?B)\s*", str(budget).upper())
    if match is None or not isinstance(budget, str) or float(match[1]) == 0:
        raise ValueError(
            f"`plan` must be {_CHOICES}, got {budget!r}. Bytes are an integer above 0, or text "
            "like '8GiB' or '500 MB'."
        )
    return int(float(match[1]) * _UNITS[match[2]])


_CHOICES = "'nodes', 'graph', a number of bytes or a Plan"


def resolve(plan: PlanName | Plan, num_steps: int) -> Plan:
    """Return the plan of that name, or the plan itself.

    Raises:
        ValueError: If the plan is for another number of steps.
    """
    if isinstance(plan, Plan):
        if plan.num_steps != num_steps:
            raise ValueError(
                f"`plan` is for {plan.num_steps} steps, but the chain has {num_steps}. Make the "
                "plan with the chain's `num_steps`."
            )
        return plan
    return {"nodes": nodes, "graph": graph}[plan](num_steps)


def _steps(num_steps: int) -> int:
    num_steps = as_integer("num_steps", num_steps)
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    return num_steps
