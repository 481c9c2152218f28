"""What levels cost in time, worked out from one measurement of everything.

Two measurements of the same work differ by what else the machine does, and a planner would take the
noise for a difference between levels. So the time of a level is that of the step's whole forward
and backward passes, plus and minus the measured *shares* of what runs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chainograd.plans.plan import BlockCost, GraphCost, Level, StepCost


def bytes_of_blocks(cost: StepCost) -> int:
    """Return about what a whole graph holds: what is between the blocks, and all blocks' graphs."""
    return _light(cost).graph_bytes + sum(block.graph_bytes for block in cost.blocks)


def without_whole(cost: StepCost) -> StepCost:
    """Return the cost of a step whose whole graph has no room."""
    size, again = bytes_of_blocks(cost), sum(block.seconds for block in cost.blocks)
    return replace(
        cost,
        graph_bytes=size,
        record_bytes=size,
        backprop_bytes=size,
        backward_seconds=max(_light(cost).backward_seconds - again, 0.0),
        fits=False,
    )


def with_attention(
    plain: Sequence[BlockCost], attended: Sequence[BlockCost] = ()
) -> tuple[BlockCost, ...]:
    """Return the costs of blocks with what their attention takes.

    Args:
        plain: Measured with attention running again.
        attended: Measured with its outputs kept; empty if there is none.
    """
    if not attended:
        return tuple(plain)
    return tuple(
        replace(
            one,
            attention_bytes=other.attention_bytes,
            attention_seconds=max(one.seconds - other.seconds, 0.0),
        )
        for one, other in zip(plain, attended, strict=True)
    )


def with_level_seconds(cost: StepCost) -> StepCost:
    """Return a cost whose levels have the seconds of what runs again."""
    blocks = sum(block.seconds for block in cost.blocks)
    scale = min(1.0, cost.forward_seconds / blocks) if blocks else 0.0
    attention = scale * sum(block.attention_seconds for block in cost.blocks)

    def of(graph: GraphCost) -> GraphCost:
        more = scale * blocks
        if Level.BLOCKS not in graph.level:
            more = graph.backward_seconds  # what is saved, and no more
        elif Level.ATTENTION in graph.level:
            more -= attention
        return replace(graph, backward_seconds=cost.backward_seconds + more)

    return replace(cost, graphs=tuple(map(of, cost.graphs)))


def with_level_flops(cost: StepCost) -> StepCost:
    """Return a cost whose levels have seconds in step evaluations, by their operations."""
    flops, back = cost.forward_flops, cost.backward_flops
    graphs: list[GraphCost] = []
    for graph in cost.graphs:
        more = 1.0 if Level.BLOCKS in graph.level else 0.0
        if flops and back is not None and graph.backward_flops is not None:
            more = (graph.backward_flops - back) / flops
        graphs.append(replace(graph, backward_seconds=1.0 + more))
    return replace(cost, graphs=tuple(graphs))


def _light(cost: StepCost) -> GraphCost:
    return next(graph for graph in cost.graphs if graph.level is Level.BLOCKS and not graph.kept)
