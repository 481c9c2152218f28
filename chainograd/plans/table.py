"""A plan as a table: what it holds, what it runs, and what that costs next to the plain loop."""

from __future__ import annotations

from collections import Counter

from chainograd.plans.costs import BlockCost, StepCost, prices_of
from chainograd.plans.holding import holding, most_stored, peak, runs, seconds
from chainograd.plans.levels import Level, level_name
from chainograd.plans.operations import total_flops
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
    if any(program.levels):
        rows.append(("levels", _levels(program)))
    if costs is not None:
        rows += _priced(program, costs)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _priced(program: Program, costs: tuple[StepCost, ...]) -> list[tuple[str, str]]:
    prices = prices_of(program, costs)
    most, time = peak(program, prices), seconds(program, prices)
    plain_bytes = max(sum(cost.graph_bytes for cost in costs), 1)
    plain = sum(cost.forward_seconds + cost.backward_seconds for cost in costs)
    stored, largest = most_stored(program, prices), _largest_block(program, costs)
    rows = [
        ("peak", f"{most / 2**20:.1f} MiB   "
                 f"({most / plain_bytes:.3f} of the plain loop's graphs)"),
        ("time", f"{time:.3g} s   ({time / plain:.2f} of the plain loop)"),
    ]  # fmt: skip
    if stored:
        rows.append(("in the store", f"{stored / 2**20:.1f} MiB"))
    if largest is not None:
        size = f"{largest.graph_bytes / 2**20:.1f} MiB"
        rows.append(
            ("largest block", f"{size}   ({largest.name}: its graph, alone on the way back)")
        )
    flops = total_flops(program, costs)
    if flops is not None:
        plain_flops = sum((c.forward_flops or 0) + (c.backward_flops or 0) for c in costs)
        ratio = flops / max(plain_flops, 1)
        rows.append(("operations", f"{flops / 1e12:.4g} TFLOP   ({ratio:.2f} of the plain loop)"))
    return rows


def _levels(program: Program) -> str:
    """Return how many steps are at which level, in the order of the chain."""
    kept = program.recorded_first
    pairs = zip(map(Level, program.levels), kept, strict=True)
    names = Counter(level_name(level, kept=bool(first)) for level, first in pairs)
    return ", ".join(f"{count} {name}" for name, count in names.items())


def _largest_block(program: Program, costs: tuple[StepCost, ...]) -> BlockCost | None:
    """Return the block whose graph is largest, of the steps that are cut."""
    cut = [cost for cost, code in zip(costs, program.levels, strict=True) if code & Level.BLOCKS]
    blocks = [block for cost in cut for block in cost.blocks]
    return max(blocks, key=lambda block: block.graph_bytes, default=None)
