"""The floating-point operations of a plan, if they were counted."""

from __future__ import annotations

from collections.abc import Sequence

from chainograd.plans.costs import StepCost
from chainograd.plans.holding import runs
from chainograd.plans.levels import Level
from chainograd.plans.program import BACKPROP, Program, indices_of, kinds_of


def total_flops(program: Program, costs: Sequence[StepCost]) -> int | None:
    """Return the operations of both passes together; None if they were not counted.

    Args:
        program: The plan's actions.
        costs: The cost of each step; `CheckpointedChain.measure` counts on fake tensors.
    """
    kept, total = program.recorded_first, 0
    passed = set(indices_of(program.backward[kinds_of(program.backward) == BACKPROP]).tolist())
    for i, (cost, count) in enumerate(zip(costs, runs(program).tolist(), strict=True)):
        back = cost.graph(Level(program.levels[i]), kept=bool(kept[i])).backward_flops
        if cost.forward_flops is None or back is None:
            return None
        total += count * cost.forward_flops + back * (i in passed)
    return total
