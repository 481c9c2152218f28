"""Plans that keep every node, and some of the graphs.

plan                nodes and graphs that it holds     step evaluations
nodes(M)            M nodes, 1 graph                   2M - 1
keep_last(M, k)     M nodes, the last k graphs         2M - k
graph(M)            M nodes, M graphs                  M

Plans with fewer nodes are in ``chainograd.plans.revolve``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np

from chainograd.plans.integers import as_integer
from chainograd.plans.plan import Level, Plan
from chainograd.plans.program import (
    ADVANCE,
    BACKPROP,
    DROP,
    KEEP,
    LOAD,
    RECORD,
    WIDTH,
    Program,
    codes,
    mask_of,
)

PlanName = Literal[
    "nodes", "graph", "blocks", "skeleton",
    "nodes+attention", "blocks+attention", "skeleton+attention",
]  # fmt: skip


def nodes(num_steps: int) -> Plan:
    """Return the paper's plan, which keeps every node and the graph of the last step.

    The plan takes 2M-1 evaluations and the memory of M nodes and one step's graph.

    References:
        Zhang et al. (2023), section 4.4 and Algorithm 1. The paper runs the last step again too,
        2M evaluations; here its graph is still there when the backward pass begins.
    """
    return keep_last(num_steps, 1)


def graph(num_steps: int) -> Plan:
    """Return the plan of the plain loop, which keeps every graph and runs no step again.

    The plan takes M evaluations and the memory of M graphs.
    """
    return keep_last(num_steps, num_steps)


def keep_last(num_steps: int, k: int) -> Plan:
    """Return the plan that keeps every node and the graphs of the last ``k`` steps.

    The backward pass frees the graphs of the last steps first, so the peak is at most one step's
    graph above what is held when the backward pass begins. The plan takes 2M-k evaluations, the
    fewest that k graphs allow.

    Args:
        num_steps: M, at least 1.
        k: Number of graphs, 1 to M.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is not an integer.

    Example:
        >>> keep_last(10, 3).evaluations
        17
    """
    num_steps, k = as_num_steps(num_steps), as_integer("k", k)
    if not 1 <= k <= num_steps:
        raise ValueError(f"`k` must lie in 1 … `num_steps` = {num_steps}, got {k}.")
    return keep_graphs(num_steps, range(num_steps - k, num_steps))


def keep_graphs(num_steps: int, steps: Collection[int]) -> Plan:
    """Return the plan that keeps every node and the graphs of ``steps``."""
    recorded = mask_of(num_steps, list(steps))
    every = codes(0, 0, num_steps)
    forward = np.stack([every + KEEP, every + np.where(recorded, RECORD, ADVANCE)], axis=1)
    # A node is dropped after its step's second result has been compared with the next node.
    rows = np.stack([every + LOAD, every + RECORD, every + WIDTH + DROP, every + BACKPROP], axis=1)
    there = np.ones(rows.shape, dtype=bool)
    there[recorded, :2] = False
    there[-1, 2] = False
    backward = np.append(rows[::-1][there[::-1]], DROP)
    return Plan.of(Program(num_steps, forward.ravel(), backward))


def resolve(plan: PlanName | Plan, num_steps: int) -> Plan:
    """Return the plan that a name stands for, or the plan itself.

    Raises:
        ValueError: If the plan has another number of steps.
    """
    if isinstance(plan, Plan):
        if plan.num_steps != num_steps:
            raise ValueError(
                f"`plan` is for {plan.num_steps} steps, but the chain has {num_steps}. Make the "
                "plan with the chain's `num_steps`."
            )
        return plan
    name, _, attention = plan.partition("+")
    whole = (graph if name in ("graph", "skeleton") else nodes)(num_steps)
    level = Level.BLOCKS if name in ("blocks", "skeleton") else Level.WHOLE
    return whole.with_levels(level | Level.ATTENTION if attention else level)


def as_num_steps(num_steps: int) -> int:
    """Return ``num_steps`` as a Python integer of at least 1.

    Raises:
        ValueError: If it is below 1.
        TypeError: If it is not an integer.
    """
    num_steps = as_integer("num_steps", num_steps)
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    return num_steps
