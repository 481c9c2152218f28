"""The search for the fastest plan that fits into a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from chainograd.plans.costs import PriceList, StepCost
from chainograd.plans.holding import peak, seconds
from chainograd.plans.plan import Plan
from chainograd.plans.planners import keep_graphs, keep_last
from chainograd.plans.revolve import binomials

MANY_SLOTS = 32  # above this number of slots, only the most slots that fit are tried


class Weighed:
    """Plans as a chain carries them out, and whether they fit into a budget.

    Args:
        costs: The cost of each step.
        limit: The budget, in bytes.
        as_run: Turns a plan into the plan that a chain carries out.
    """

    def __init__(
        self, costs: Sequence[StepCost], limit: int, as_run: Callable[[Plan], Plan]
    ) -> None:
        self.num_steps = len(costs)
        self.prices = PriceList(costs)
        self.limit = limit
        self.as_run = as_run

    def fits(self, plan: Plan) -> bool:
        """Return whether a plan is within the budget."""
        return peak(plan.program, self.prices.of(plan.program)) <= self.limit

    def cost(self, plan: Plan) -> tuple[float, int]:
        """Return seconds and bytes: the fastest plan is best, and of equal plans the smallest."""
        prices = self.prices.of(plan.program)
        return seconds(plan.program, prices), peak(plan.program, prices)

    def largest(self, make: Callable[[int], Plan]) -> Plan | None:
        """Return the largest plan that fits of ``make(1)`` … ``make(num_steps)``, or None."""
        best, low, high = None, 1, self.num_steps
        while low <= high:
            middle = (low + high) // 2
            plan = self.as_run(make(middle))
            if self.fits(plan):
                best, low = plan, middle + 1
            else:
                high = middle - 1
        return best


def fastest_plan(weighed: Weighed) -> Plan | None:
    """Return the fastest plan that fits, or None."""
    M = weighed.num_steps
    all_graphs, nodes = (weighed.as_run(keep_last(M, k)) for k in (M, 1))
    if weighed.fits(all_graphs):
        return all_graphs  # no step runs again
    fitting = [nodes] if weighed.fits(nodes) else []
    if all_graphs != nodes:  # equal if `as_run` allows no graphs
        fitting += filter(None, map(weighed.largest, _with_nodes(weighed)))
    # With every node, a step runs at most twice; in a binomial plan every step but the last runs
    # at least twice.
    return min(fitting, key=weighed.cost) if fitting else _binomial(weighed)


def _with_nodes(weighed: Weighed) -> list[Callable[[int], Plan]]:
    """Return families of plans that keep every node and k graphs."""
    M = weighed.num_steps
    prices = weighed.prices.of(keep_last(M, M).program)
    saved = prices.forward_seconds / np.maximum(prices.graph, 1)
    # From cheap to dear in what their graphs save. Of equal steps the last is dearest.
    dear = np.append(np.argsort(saved[:-1], kind="stable"), M - 1)
    return [lambda k: keep_last(M, k), lambda k: keep_graphs(M, dear[M - k :].tolist())]


def _binomial(weighed: Weighed) -> Plan | None:
    """Return the fastest binomial plan that fits, or None."""
    M, made = weighed.num_steps, binomials(weighed.num_steps)
    # Two slots at least: the plan with one slot is never faster, and has M ** 2 / 2 actions.
    most = weighed.largest(lambda s: made(max(s, min(M, 2))))
    # If steps differ in cost, a plan with more slots can run the dear steps more often.
    some = [weighed.as_run(made(s)) for s in range(2, min(M, MANY_SLOTS) + 1)]
    some += [most] if most is not None else []
    some.sort(key=lambda plan: seconds(plan.program, weighed.prices.of(plan.program)))
    found = next(filter(weighed.fits, some), None)
    if found is None:
        one = weighed.as_run(made(1))
        return one if weighed.fits(one) else None
    return found


def smallest_plans(num_steps: int, as_run: Callable[[Plan], Plan]) -> Iterator[Plan]:
    """Yield two plans, one of which has the smallest peak of all plans."""
    yield as_run(keep_last(num_steps, 1))
    yield as_run(binomials(num_steps)(1))
