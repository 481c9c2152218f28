"""The fastest plan within a number of bytes. No tensors here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from chainograd.plans.costs import Prices, StepCost, peak, seconds
from chainograd.plans.plan import Plan
from chainograd.plans.planners import binomials, keep_graphs, keep_last, parse_bytes

MANY_SLOTS = 32  # from here on, only the most slots that fit are looked at


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
    if not costs:
        raise ValueError("`costs` is empty: it holds one cost for each step of the chain.")
    plan = _fastest(Weighed(costs, limit, as_run))
    if plan is None:
        least = min(peak(plan.program, Prices.of(costs)) for plan in _least(len(costs), as_run))
        raise ValueError(
            f"`plan` {budget!r} is {limit:,} bytes, but this chain needs {least:,} at the least "
            "(one node, one graph at a time). Give it that, or make the step smaller: a smaller "
            "batch, or `frozen='auto'` where weights are frozen."
        )
    return plan.with_costs(costs)


class Weighed:
    """Plans as a chain carries them out, weighed against a budget."""

    def __init__(
        self, costs: Sequence[StepCost], limit: int, as_run: Callable[[Plan], Plan]
    ) -> None:
        self.num_steps = len(costs)
        self.prices = Prices.of(costs)
        self.limit = limit
        self.as_run = as_run

    def fits(self, plan: Plan) -> bool:
        """Return whether a plan is within the budget."""
        return peak(plan.program, self.prices) <= self.limit

    def cost(self, plan: Plan) -> tuple[float, int]:
        """Return what the best plan has least of: seconds, and of equal ones bytes."""
        return seconds(plan.program, self.prices), peak(plan.program, self.prices)

    def largest(self, make: Callable[[int], Plan]) -> Plan | None:
        """Return the largest plan that fits, of a family with 1 … ``num_steps``, or None."""
        best, low, high = None, 1, self.num_steps
        while low <= high:
            middle = (low + high) // 2
            plan = self.as_run(make(middle))
            if self.fits(plan):
                best, low = plan, middle + 1
            else:
                high = middle - 1
        return best


def _fastest(weighed: Weighed) -> Plan | None:
    """Return the fastest plan that fits, or None."""
    M = weighed.num_steps
    all_graphs, nodes = (weighed.as_run(keep_last(M, k)) for k in (M, 1))
    if weighed.fits(all_graphs):
        return all_graphs  # nothing runs again
    fitting = [nodes] if weighed.fits(nodes) else []
    if all_graphs != nodes:  # else there are no graphs to keep
        fitting += filter(None, map(weighed.largest, _with_nodes(weighed)))
    # Where every node is kept, no step runs more often than twice, and in a binomial plan none but
    # the last runs less often.
    return min(fitting, key=weighed.cost) if fitting else _binomial(weighed)


def _with_nodes(weighed: Weighed) -> list[Callable[[int], Plan]]:
    """Return families of plans that keep every node and k graphs."""
    M, prices = weighed.num_steps, weighed.prices
    saved = prices.forward_seconds / np.maximum(prices.graph, 1)
    dear = np.append(np.argsort(saved[:-1], kind="stable"), M - 1)  # of equal ones, the last
    return [lambda k: keep_last(M, k), lambda k: keep_graphs(M, dear[M - k :].tolist())]


def _binomial(weighed: Weighed) -> Plan | None:
    """Return the fastest binomial plan that fits, or None."""
    M, made = weighed.num_steps, binomials(weighed.num_steps)
    # A plan with a single slot runs no step less often than others, and has M ** 2 / 2 actions.
    most = weighed.largest(lambda s: made(max(s, min(M, 2))))
    # Of steps of unequal cost, more slots may run the dear ones again more often.
    some = [weighed.as_run(made(s)) for s in range(2, min(M, MANY_SLOTS) + 1)]
    some += [most] if most is not None else []
    some.sort(key=lambda plan: seconds(plan.program, weighed.prices))
    found = next(filter(weighed.fits, some), None)
    if found is None:
        one = weighed.as_run(made(1))
        return one if weighed.fits(one) else None
    return found


def _least(num_steps: int, as_run: Callable[[Plan], Plan]) -> Iterator[Plan]:
    """Yield the plans of which one needs least."""
    yield as_run(keep_last(num_steps, 1))
    yield as_run(binomials(num_steps)(1))
