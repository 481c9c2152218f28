"""A number of bytes as a budget, and the fastest plan that stays within it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from chainograd.plans.costs import StepCost, prices_of
from chainograd.plans.fastest import Weighed, fastest_plan, smallest_plans
from chainograd.plans.holding import peak
from chainograd.plans.integers import as_integer, is_integer
from chainograd.plans.plan import Plan


def within(
    budget: int | str,
    costs: Sequence[StepCost],
    *,
    as_run: Callable[[Plan], Plan] = lambda plan: plan,
) -> Plan:
    """Return the fastest known plan whose predicted peak is within a budget.

    The plan keeps all nodes and as many graphs as fit: either the graphs that save the most seconds
    per byte, or the last graphs, whichever is faster. If not even the nodes fit, it is a binomial
    plan with as many slots as fit. A larger budget never makes the plan slower. (Exception: for
    steps of unequal cost, binomial plans with more than 32 slots are not all compared.)

    Args:
        budget: Bytes, or text such as ``"8GiB"`` or ``"500 MB"``.
        costs: The cost of each step, from `CheckpointedChain.measure`.
        as_run: Turns a plan into the plan that a chain carries out. The result is such a plan.

    Raises:
        ValueError: If the budget cannot be read, or is smaller than the chain needs at least.
    """
    limit, costs = parse_bytes(budget), tuple(costs)
    if not costs:
        raise ValueError("`costs` is empty: it must hold one cost for each step of the chain.")
    plan = fastest_plan(Weighed(costs, limit, as_run))
    if plan is None:
        least = min(
            peak(plan.program, prices_of(plan.program, costs)) for plan in smallest_plans(len(costs), as_run)
        )
        raise ValueError(
            f"`plan` {budget!r} is {limit:,} bytes, but this chain needs {least:,} at the least "
            "(one node, and one graph at a time). Raise the budget, or make the step smaller: a "
            "smaller batch, or `frozen='auto'` if weights are frozen."
        )
    return plan.with_costs(costs)


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_bytes(budget: int | str) -> int:
    """Return a budget as a number of bytes.

    Raises:
        ValueError: If the budget cannot be read or is not positive.

    Example:
        >>> parse_bytes("1.5 GiB")
        1610612736
    """
    if is_integer(budget) and (count := as_integer("plan", budget)) > 0:
        return count
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*((?:[KMGT]I?)?B)\s*", str(budget).upper())
    if match is None or not isinstance(budget, str) or float(match[1]) == 0:
        raise ValueError(
            "`plan` must be 'nodes', 'graph', a number of bytes or a Plan, got "
            f"{budget!r}. Write bytes as an integer above 0, or as text like '8GiB' or '500 MB'."
        )
    return int(float(match[1]) * _UNITS[match[2]])
