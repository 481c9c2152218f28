"""Planners: which nodes and graphs to keep, for a number of steps. No tensors here.

plan                kept                               step evaluations
nodes(M)            M nodes, 1 graph                   2M - 1
keep_last(M, k)     M nodes, the last k graphs         2M - k
graph(M)            M graphs                           M
binomial(M, s)      s nodes, 1 graph                   (r+1) M - C(s+r, s+1)
"""

from __future__ import annotations

from math import comb
from typing import Literal, get_args

from chainograd.plan import Action, Advance, Backprop, Drop, Keep, Load, Plan, Record

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


def resolve(plan: PlanName | Plan, num_steps: int) -> Plan:
    """Return the plan that a user's ``plan=`` means.

    Raises:
        ValueError: If the name is unknown or the plan is for another number of steps.
    """
    if isinstance(plan, Plan):
        if plan.num_steps != num_steps:
            raise ValueError(
                f"`plan` is for {plan.num_steps} steps, but the chain has {num_steps}. Make the "
                "plan with the chain's `num_steps`."
            )
        return plan
    if plan not in get_args(PlanName):
        raise ValueError(
            f"`plan` must be one of {', '.join(map(repr, get_args(PlanName)))} or a Plan, "
            f"got {plan!r}."
        )
    return {"nodes": nodes, "graph": graph}[plan](num_steps)


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
