"""A number of bytes as a budget, and the fastest plan that stays within it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chainograd.plans.costs import StepCost
from chainograd.plans.fastest import Weighed, fastest_plan, smallest_plans
from chainograd.plans.fastest_levels import Limits
from chainograd.plans.holding import most_stored
from chainograd.plans.integers import as_integer, is_integer
from chainograd.plans.plan import Plan


@dataclass(frozen=True, slots=True)
class Budget:
    """How many bytes a chain may take.

    Args:
        device: On the device: an integer, or text such as ``"24GiB"``.
        host: In the host's memory, for a chain whose store is ``"host"`` or a folder; None is no
            limit.

    Raises:
        ValueError: If one of them cannot be read, or is not positive.

    Example:
        >>> Budget("24GiB", host="64GiB").limits
        Limits(device=25769803776, stored=68719476736)
    """

    device: int | str
    host: int | str | None = None

    def __post_init__(self) -> None:
        assert self.limits.device > 0  # refuses what cannot be read

    @classmethod
    def of(cls, budget: int | str | Budget) -> Budget:
        """Return a budget as a `Budget`."""
        return budget if isinstance(budget, Budget) else cls(budget)

    @property
    def limits(self) -> Limits:
        """The bytes as integers."""
        host = None if self.host is None else parse_bytes(self.host)
        return Limits(parse_bytes(self.device), host)


def within(
    budget: int | str | Budget,
    costs: Sequence[StepCost],
    *,
    as_run: Callable[[Plan], Plan] = lambda plan: plan,
) -> Plan:
    """Return the fastest known plan whose predicted peak is within a budget.

    The plan keeps all nodes and as many graphs as fit: either the graphs that save the most seconds
    per byte, or the last graphs, whichever is faster. If the costs of graphs are known that are cut
    into blocks, each step is at the level at which the plan is fastest. If not even the nodes fit,
    it is a binomial plan with as many slots as fit. A larger budget never makes the plan slower.
    (Exception: for steps of unequal cost, binomial plans with more than 32 slots are not all
    compared.)

    Args:
        budget: Bytes, text such as ``"8GiB"`` or ``"500 MB"``, or a `Budget`.
        costs: The cost of each step, from `CheckpointedChain.measure`.
        as_run: Turns a plan into the plan that a chain carries out. The result is such a plan.

    Raises:
        ValueError: If the budget cannot be read, or is smaller than the chain needs at least.
    """
    limits, costs = Budget.of(budget).limits, tuple(costs)
    if not costs:
        raise ValueError("`costs` is empty: it must hold one cost for each step of the chain.")
    weighed = Weighed(costs, limits, as_run)
    plan = fastest_plan(weighed)
    if plan is None:
        raise ValueError(_too_small(budget, weighed))
    return plan.with_costs(costs)


def _too_small(budget: int | str | Budget, weighed: Weighed) -> str:
    limits, stored = weighed.limits, None
    smallest = [(weighed.cost(plan)[1], plan) for plan in smallest_plans(weighed)]
    least, plan = min(smallest, key=lambda each: each[0])
    if limits.stored is not None and least <= limits.device:
        stored = most_stored(plan.program, weighed.prices.of(plan.program))
        return (
            f"`plan` {budget!r} leaves {limits.stored:,} bytes to the store, but the chain's nodes "
            f"need {stored:,} there. Raise `host`, or keep nodes on the device: `store='device'`."
        )
    return (
        f"`plan` {budget!r} is {limits.device:,} bytes, but this chain needs {least:,} at the "
        "least (one node, and one graph at a time). Raise the budget, or make the step smaller: a "
        "smaller batch, `frozen='auto'` if weights are frozen, or `blocks=[…]`, the modules that "
        "a step's graph may be cut into."
    )


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
