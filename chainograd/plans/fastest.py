"""The search for the fastest plan that fits into a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from chainograd.plans.choose_levels import with_levels
from chainograd.plans.costs import PriceList, StepCost
from chainograd.plans.fastest_levels import Limits, fastest_levels
from chainograd.plans.holding import peak, seconds
from chainograd.plans.levels import Level
from chainograd.plans.plan import Plan
from chainograd.plans.planners import keep_graphs, keep_last
from chainograd.plans.revolve import binomials

MANY_SLOTS = 32  # above this number of slots, only the most slots that fit are tried


class Weighed:
    """Plans as a chain carries them out, and whether they fit into a budget.

    Args:
        costs: The cost of each step.
        limits: The budget.
        as_run: Turns a plan into the plan that a chain carries out.
    """

    def __init__(
        self, costs: Sequence[StepCost], limits: Limits, as_run: Callable[[Plan], Plan]
    ) -> None:
        self.num_steps = len(costs)
        self.prices = PriceList(costs)
        self.limits = limits
        self.as_run = as_run

    def fits(self, plan: Plan) -> bool:
        """Return whether a plan is within the budget."""
        return self.limits.hold(plan.program, self.prices)

    def levelled(self, plan: Plan) -> Plan | None:
        """Return a plan with the fastest levels that fit, or None."""
        if self.prices.levels == (Level.WHOLE,):
            return plan if self.fits(plan) else None
        levels = (level for level in self.prices.levels if Level.BLOCKS in level)
        cut = next(levels, Level.WHOLE)
        kept = np.full(self.num_steps, int(cut), dtype=np.uint8)
        limit = self.limits.device
        program = with_levels(plan.program, kept, self.prices, limit, attention=False)
        found = None if program is None else Plan.of(program)
        return found if found is not None and self.fits(found) else None

    def cost(self, plan: Plan) -> tuple[float, int]:
        """Return seconds and bytes: the fastest plan is best, and of equal plans the smallest."""
        prices = self.prices.of(plan.program)
        return seconds(plan.program, prices), peak(plan.program, prices)

    def largest(self, make: Callable[[int], Plan], *, levelled: bool) -> Plan | None:
        """Return the largest plan that fits of ``make(1)`` … ``make(num_steps)``, or None.

        Args:
            make: Makes a plan.
            levelled: Whether its steps may be at other levels than whole.
        """
        best, low, high = None, 1, self.num_steps
        while low <= high:
            middle = (low + high) // 2
            plan = self.as_run(make(middle))
            plan = self.levelled(plan) if levelled else (plan if self.fits(plan) else None)
            if plan is not None:
                best, low = plan, middle + 1
            else:
                high = middle - 1
        return best


def fastest_plan(weighed: Weighed) -> Plan | None:
    """Return the fastest plan that fits, or None."""
    M = weighed.num_steps
    all_graphs = weighed.as_run(keep_last(M, M))
    if weighed.fits(all_graphs):
        return all_graphs  # no step runs again
    fitting = list(filter(None, _whole(weighed)))
    if any(Level.BLOCKS in level for level in weighed.prices.levels):
        found = fastest_levels(weighed.prices, weighed.limits, weighed.as_run)
        fitting += [] if found is None else [found]
    # With every node, a step runs at most twice; in a binomial plan every step but the last runs
    # at least twice.
    return min(fitting, key=weighed.cost) if fitting else _binomial(weighed)


def _whole(weighed: Weighed) -> Iterator[Plan | None]:
    """Yield plans that keep every node, with whole graphs, and None where none fits."""
    M = weighed.num_steps
    if Level.WHOLE not in weighed.prices.levels:
        return
    nodes = weighed.as_run(keep_last(M, 1))
    yield nodes if weighed.fits(nodes) else None
    if weighed.as_run(keep_last(M, M)) != nodes:  # equal if `as_run` allows no graphs
        for make in _with_nodes(weighed):
            yield weighed.largest(make, levelled=False)


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
    most = weighed.largest(lambda s: made(max(s, min(M, 2))), levelled=True)
    # If steps differ in cost, a plan with more slots can run the dear steps more often.
    some = map(weighed.as_run, map(made, range(2, min(M, MANY_SLOTS) + 1)))
    fitting = [*filter(None, map(weighed.levelled, some)), *([] if most is None else [most])]
    if fitting:
        return min(fitting, key=weighed.cost)
    return weighed.levelled(weighed.as_run(made(1)))


def smallest_plans(weighed: Weighed) -> Iterator[Plan]:
    """Yield plans, one of which has the smallest peak of all plans."""
    M = weighed.num_steps
    for plan in (weighed.as_run(keep_last(M, 1)), weighed.as_run(binomials(M)(1))):
        for level in weighed.prices.levels:
            if level != Level.ATTENTION:
                yield plan.with_levels(level)
