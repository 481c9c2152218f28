"""Planners: which nodes and graphs to keep, for a number of steps. No tensors here.

plan                kept                               step evaluations
nodes(M)            M nodes, 1 graph                   2M - 1
keep_last(M, k)     M nodes, the last k graphs         2M - k
graph(M)            M graphs                           M
binomial(M, s)      s nodes, 1 graph                   (r+1) M - C(s+r, s+1)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from math import comb
from typing import Literal

from chainograd.plan import Action, Advance, Backprop, Drop, Keep, Load, Plan, Record, StepCost

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

    Example:
        >>> keep_last(10, 3).evaluations
        17
    """
    _check_steps(num_steps)
    if not 1 <= k <= num_steps:
        raise ValueError(f"`k` must lie in 1 … `num_steps` = {num_steps}, got {k}.")
    return keep_graphs(num_steps, range(num_steps - k, num_steps))


@lru_cache(maxsize=32)
def keep_graphs(num_steps: int, kept: range | frozenset[int]) -> Plan:
    """Return the plan that keeps every node and the graphs of the steps in ``kept``."""
    forward: list[Action] = []
    backward: list[Action] = []
    for i in range(num_steps):
        forward += [Keep(i), Record(i) if i in kept else Advance(i)]
    for i in reversed(range(num_steps)):
        if i not in kept:
            backward += [Load(i), Record(i)]
        # A node is dropped when it has been compared with what its step gave the second time.
        backward += [Drop(i + 1)] if i + 1 < num_steps else []
        backward += [Backprop(i)]
    return Plan(num_steps, tuple(forward), (*backward, Drop(0)))


def binomial(num_steps: int, *, slots: int) -> Plan:
    """Return the plan that needs the fewest step evaluations with a given number of nodes.

    Costs (r+1) M - C(s+r, s+1) evaluations, with the least r for which C(s+r, s) >= M, and the
    memory of s nodes and one step's graph.

    Args:
        num_steps: M, at least 1.
        slots: s, how many nodes may be kept at once, at least 1. The chain's input is one of them.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Griewank and Walther (2000), Algorithm 799: revolve.

    Example:
        >>> binomial(10, slots=9).evaluations
        19
        >>> binomial(10, slots=1).evaluations
        55
    """
    _check_steps(num_steps)
    if slots < 1:
        raise ValueError(f"`slots` must be at least 1 (the chain's input), got {slots}.")
    actions: list[Action] = [Keep(0)]
    # Segments still to be reversed, the next one last: steps from start to stop - 1, whose first
    # node is kept, with that many slots (its own included). Each knows whether the state that
    # enters it is the current one.
    todo: list[tuple[int, int, int, bool]] = [(0, num_steps, slots, True)]
    while todo:
        start, stop, s, current = todo.pop()
        if not current:
            actions.append(Load(start))
        if s == 1 or stop - start == 1:
            for i in reversed(range(start, stop)):
                actions += [Load(start)] * (i < stop - 1)
                actions += [Advance(j) for j in range(start, i)]
                actions += [Record(i), Backprop(i)]
            actions.append(Drop(start))
            continue
        middle = start + first_part(stop - start, s)
        actions += [Advance(j) for j in range(start, middle)]
        actions.append(Keep(middle))
        todo += [(start, middle, s, False), (middle, stop, s - 1, True)]
    turn = next(j for j, action in enumerate(actions) if isinstance(action, Backprop))
    return Plan(num_steps, tuple(actions[:turn]), tuple(actions[turn:]))


def restricted(plan: Plan, steps: frozenset[int]) -> Plan:
    """Return the plan without what serves other steps' gradients than those of ``steps``."""
    backward: list[Action] = []
    leading: list[Action] = []  # up to a step that is recorded, or a node that is kept
    for action in plan.backward:
        if isinstance(action, (Load, Advance)):
            leading.append(action)
        elif isinstance(action, Record) and action.index not in steps:
            leading = []
        else:
            backward += [*leading, action]
            leading = []
    loaded = {action.index for action in backward if isinstance(action, Load)}
    forward: list[Action] = [
        Advance(action.index)
        if isinstance(action, Record) and action.index not in steps
        else action
        for action in plan.forward
        if not isinstance(action, Keep) or action.index in loaded or action.index in steps
    ]
    kept = {action.index for action in (*forward, *backward) if isinstance(action, Keep)}
    backward = [a for a in backward if not isinstance(a, Drop) or a.index in kept]
    return replace(plan, forward=tuple(forward), backward=tuple(backward))


def without_graphs(plan: Plan) -> Plan:
    """Return the plan that keeps no graph at the turn: every step is recorded on the way back."""
    recorded = {action.index for action in plan.forward if isinstance(action, Record)}
    kept = {action.index for action in plan.forward if isinstance(action, Keep)}
    forward = [Advance(a.index) if isinstance(a, Record) else a for a in plan.forward]
    backward: list[Action] = []
    for action in plan.backward:
        i = action.index
        if isinstance(action, Backprop) and i in recorded:
            start = max(j for j in kept if j <= i)
            backward += [Load(start), *map(Advance, range(start, i)), Record(i)]
            recorded.remove(i)
        elif isinstance(action, Keep):
            kept.add(i)
        elif isinstance(action, Drop):
            kept.remove(i)
        elif isinstance(action, Record):
            recorded.discard(i)
        backward.append(action)
    return replace(plan, forward=tuple(forward), backward=tuple(backward))


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


def within(
    budget: int | str,
    costs: Sequence[StepCost],
    *,
    as_run: Callable[[Plan], Plan] = lambda plan: plan,
) -> Plan:
    """Return the fastest plan known whose predicted peak is within a budget.

    It keeps all nodes and as many graphs as fit, those that save most seconds a byte or the last
    ones, whichever is faster; where not even the nodes fit, a binomial plan with as many slots as
    do. More budget never makes it slower (of binomial plans with more than 32 slots that is not
    known for steps of unequal cost): the fastest of what fits wins.

    Args:
        budget: Bytes, or text such as ``"8GiB"`` or ``"500 MB"``.
        costs: What each step costs, from `CheckpointedChain.measure`.
        as_run: Makes of a plan what a chain carries out; the plan that is returned is one it made.

    Raises:
        ValueError: If the budget cannot be read, or is less than the least that is needed.
    """
    limit, costs = parse_bytes(budget), tuple(costs)
    M = len(costs)

    def saved(i: int) -> tuple[float, int]:
        return costs[i].forward_seconds / max(costs[i].graph_bytes, 1), i

    def made(plan: Plan) -> Plan:
        return as_run(plan).with_costs(costs)

    families: list[Callable[[int], Plan]] = [
        lambda k: made(keep_last(M, k)),
        lambda k: made(
            keep_graphs(M, frozenset([*sorted(range(M - 1), key=saved)[M - k :], M - 1]))
        ),
        lambda s: made(binomial(M, slots=s)),
    ]
    fitting = [plan for make in families if (plan := _largest(make, M, limit)) is not None]
    # Of steps of unequal cost, more slots may run the dear ones again more often.
    few = (made(binomial(M, slots=s)) for s in range(1, min(M, 32) + 1))
    fitting += [plan for plan in few if plan.peak_bytes <= limit]
    if not fitting:
        least = min(make(1).peak_bytes for make in families)
        raise ValueError(
            f"`plan` {budget!r} is {limit:,} bytes, but this chain needs {least:,} at the least "
            "(one node, one graph at a time). Give it that, or make the step smaller: a smaller "
            "batch, or `frozen='auto'` where weights are frozen."
        )
    return min(fitting, key=lambda plan: (plan.seconds, plan.peak_bytes))


def _largest(make: Callable[[int], Plan], count: int, limit: int) -> Plan | None:
    """Return the largest plan of a nested family that fits, or None."""
    best, low, high = None, 1, count
    while low <= high:
        middle = (low + high) // 2
        plan = make(middle)
        if plan.peak_bytes <= limit:
            best, low = plan, middle + 1
        else:
            high = middle - 1
    return best


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
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return budget
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?I?B)\s*", str(budget).upper())
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


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
