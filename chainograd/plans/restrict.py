"""Plans changed to what a chain needs: fewer gradients, or no graph before the backward pass."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

import numpy as np

from chainograd.plans.holding import Mask
from chainograd.plans.plan import Plan
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
    indices_of,
    kinds_of,
    mask_of,
)


def restricted(plan: Plan, steps: frozenset[int]) -> Plan:
    """Return the plan without the actions that only serve gradients of steps outside ``steps``.

    `Backprop` stays for every step: the cotangent passes the other steps without a graph, because
    their states get no gradient.
    """
    M, program = plan.num_steps, plan.program
    passed = mask_of(M, list(steps))
    backward, needed = _restricted_backward(program, passed)
    kinds, i = kinds_of(program.forward), indices_of(program.forward)
    forward = np.where((kinds == RECORD) & ~passed[i], WIDTH * i + ADVANCE, program.forward)
    forward = forward[(kinds != KEEP) | needed[i]]
    both = np.concatenate([forward, backward])
    kept = mask_of(M, indices_of(both[kinds_of(both) == KEEP]))
    backward = backward[(kinds_of(backward) != DROP) | kept[indices_of(backward)]]
    return Plan.of(Program(M, forward, backward, program.levels), plan.costs)


def _restricted_backward(program: Program, passed: Mask) -> tuple[Codes, Mask]:
    """Return the backward pass for the ``passed`` steps, and which nodes it needs."""
    backward, before, needed = program.backward, -1, passed
    # Removing a load can make a node unneeded, and with it the runs that lead to that node.
    while len(backward) != before:
        before = len(backward)
        loaded = indices_of(backward[kinds_of(backward) == LOAD])
        needed = passed | mask_of(program.num_steps, loaded)
        backward = backward[(kinds_of(backward) != KEEP) | needed[indices_of(backward)]]
        backward = _without_unused(backward, passed)
    return backward, needed


def _without_unused(backward: Codes, passed: Mask) -> Codes:
    """Leave out records of steps outside ``passed``, and loads and runs that lead to nothing."""
    kinds, i = kinds_of(backward), indices_of(backward)
    used = (kinds == KEEP) | ((kinds == RECORD) & passed[i])
    stops = used | (kinds == RECORD) | (kinds == LOAD)  # how far a load or a run can lead
    leads_to = np.append(np.flatnonzero(stops), len(kinds))[np.cumsum(stops)]
    leading = (kinds == LOAD) | (kinds == ADVANCE)
    return backward[np.where(leading, np.append(used, False)[leads_to], used | (kinds != RECORD))]


def without_graphs(plan: Plan) -> Plan:
    """Return the plan that records every step in the backward pass and none in the forward pass.

    Raises:
        ValueError: If no node is left from which such a step can run again.
    """
    forward, backward = plan.program.forward, plan.program.backward
    kinds, indices = kinds_of(forward), indices_of(forward)
    kept = sorted(indices[kinds == KEEP].tolist())
    added: list[int] = []
    places: list[int] = []
    for position in _changes(backward, indices[kinds == RECORD]):
        j, kind = divmod(int(backward[position]), WIDTH)
        if kind == BACKPROP:
            rerun = _rerun(kept, j)
            added += rerun
            places += [position] * len(rerun)
        elif kind == KEEP:
            insort(kept, j)
        else:
            del kept[bisect_left(kept, j)]
    forward = np.where(kinds == RECORD, WIDTH * indices + ADVANCE, forward)
    backward = np.insert(backward, places, added)
    return Plan.of(Program(plan.num_steps, forward, backward, plan.program.levels), plan.costs)


def _changes(backward: Codes, recorded: Codes) -> list[int]:
    """Return where the cotangent passes ``recorded`` steps, and where nodes change before that."""
    kinds, i = kinds_of(backward), indices_of(backward)
    ends = np.flatnonzero((kinds == BACKPROP) & np.isin(i, recorded))
    nodes = np.flatnonzero((kinds == KEEP) | (kinds == DROP))
    return np.sort(np.concatenate([ends, nodes[nodes < ends.max(initial=0)]])).tolist()


def _rerun(kept: list[int], j: int) -> list[int]:
    """Return the actions that record step ``j`` from the last of the nodes ``kept`` before it.

    Raises:
        ValueError: If there is no such node.
    """
    place = bisect_right(kept, j) - 1
    if place < 0:
        raise ValueError(
            f"`plan` has no node from which step {j} could run again, so the chain cannot do "
            f"without the graph of step {j}. Add `Keep({j})`, or a `Keep` of an earlier step, to "
            "the plan's forward pass."
        )
    start = kept[place]
    runs = [WIDTH * step + ADVANCE for step in range(start, j)]
    return [WIDTH * start + LOAD, *runs, WIDTH * j + RECORD]
