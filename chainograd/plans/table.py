"""A plan as a table: what it holds, what it runs, and what that costs next to the plain loop."""

from __future__ import annotations

from chainograd.plans.costs import StepCost, prices_of
from chainograd.plans.holding import holding, peak, runs, seconds
from chainograd.plans.program import Program

FREE = StepCost(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)


def table(program: Program, costs: tuple[StepCost, ...] | None) -> str:
    """Return a program's table; it has a peak and a time only if there are costs."""
    M = program.num_steps
    held = holding(program, prices_of(program, costs or (FREE,) * M))
    rows = [
        ("steps", f"{M}"),
        ("step evaluations", f"{runs(program).sum()}   (plain loop: {M})"),
        ("nodes kept", f"{held.nodes.max()}"),
        ("graphs kept", f"{held.graphs.max()}   (plain loop: {M})"),
    ]
    if costs is not None:
        rows += _priced(program, costs)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _priced(program: Program, costs: tuple[StepCost, ...]) -> list[tuple[str, str]]:
    prices = prices_of(program, costs)
    most, time = peak(program, prices), seconds(program, prices)
    plain_bytes = max(sum(cost.graph_bytes for cost in costs), 1)
    plain = sum(cost.forward_seconds + cost.backward_seconds for cost in costs)
    return [
        ("peak", f"{most / 2**20:.1f} MiB   "
                 f"({most / plain_bytes:.3f} of the plain loop's graphs)"),
        ("time", f"{time:.3g} s   ({time / plain:.2f} of the plain loop)"),
    ]  # fmt: skip
