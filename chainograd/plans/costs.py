"""What a step costs in bytes and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chainograd.plans.levels import LEVELS, Level
from chainograd.plans.program import Program

Bytes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GraphCost:
    """What a step's graph costs at one level; bytes are on the device, as in `StepCost`.

    Attributes:
        level: The level.
        kept: Whether the graph is recorded in the forward pass and kept, so that what it saves
            lies in the chain's store; otherwise it is recorded in the backward pass.
        graph_bytes: What it holds until the step's backward pass.
        record_bytes: Peak while the step runs with it.
        backprop_bytes: Peak while the cotangent passes the step.
        backward_seconds: Time of the backward pass, with all that runs again in it. What a rerun
            without attention saves is taken off.
        first_backprop_bytes: As in `StepCost`.
        stored_bytes: What it holds in the store, outside the device.
        attention_bytes: Attention's outputs that the forward pass keeps for a rerun.
        backward_flops: Floating-point operations of the backward pass; None if not counted.
    """

    level: Level
    kept: bool
    graph_bytes: int
    record_bytes: int
    backprop_bytes: int
    backward_seconds: float
    first_backprop_bytes: int | None = None
    stored_bytes: int = 0
    attention_bytes: int = 0
    backward_flops: int | None = None


@dataclass(frozen=True, slots=True)
class StepCost:
    """The bytes and seconds that one step costs.

    The peaks (``advance_bytes``, ``record_bytes``, ``backprop_bytes``) do not count stored nodes
    and the graphs of other steps.

    Attributes:
        node_bytes: Size of the state that enters the step.
        result_bytes: Size of the state that leaves the step, and of that state's cotangent.
        graph_bytes: What a recorded step holds until its backward pass, besides these two states.
        advance_bytes: Peak while the step runs without a graph.
        record_bytes: Peak while the step runs with its graph.
        backprop_bytes: Peak while the cotangent passes the step, the graph included.
        gradient_bytes: Size of the gradients of the tensors that all steps share.
        forward_seconds: Time to run the step.
        backward_seconds: Time of the step's backward pass.
        stored_bytes: Size of the node on the device, if the store keeps something other than the
            state itself; otherwise None.
        first_backprop_bytes: ``backprop_bytes`` for the first step that the cotangent passes, when
            there are no gradients to add to yet; None if it is the same.
        graphs: What the graph costs at other levels than whole, where that is known.
        blocks: What each of the step's blocks holds, where that is known.
        fits: Whether the step's whole graph was measured. If there is no room for it, its bytes are
            those of its blocks together, and no plan holds it.
        forward_flops: Floating-point operations of a run; None if they were not counted.
        backward_flops: The same of the backward pass through the whole graph.
    """

    node_bytes: int
    result_bytes: int
    graph_bytes: int
    advance_bytes: int
    record_bytes: int
    backprop_bytes: int
    gradient_bytes: int = 0
    forward_seconds: float = 1.0
    backward_seconds: float = 1.0
    stored_bytes: int | None = None
    first_backprop_bytes: int | None = None
    graphs: tuple[GraphCost, ...] = ()
    blocks: tuple[BlockCost, ...] = ()
    fits: bool = True
    forward_flops: int | None = None
    backward_flops: int | None = None

    @property
    def levels(self) -> frozenset[Level]:
        """The levels whose costs are known."""
        return frozenset({Level.WHOLE} if self.fits else ()) | {g.level for g in self.graphs}

    def graph(self, level: Level, *, kept: bool) -> GraphCost:
        """Return what the step's graph costs at a level.

        Raises:
            ValueError: If that was not measured.
        """
        whole = GraphCost(
            Level.WHOLE, kept, self.graph_bytes, self.record_bytes, self.backprop_bytes,
            self.backward_seconds, self.first_backprop_bytes, backward_flops=self.backward_flops,
        )  # fmt: skip
        if level is Level.WHOLE or (kept and level is Level.ATTENTION):
            return whole
        for graph in self.graphs:
            if (graph.level, graph.kept) == (level, kept):
                return graph
        raise ValueError(
            f"The cost of a step is not known at the level {level!r}. Measure a chain whose "
            "`blocks` are known, with `chain.measure(x)`."
        )

    @property
    def kept_bytes(self) -> int:
        """Size of the node on the device."""
        return self.node_bytes if self.stored_bytes is None else self.stored_bytes


@dataclass(frozen=True, slots=True)
class BlockCost:
    """What one call of a block costs, in bytes and seconds.

    Attributes:
        name: The block's name in the model.
        input_bytes: The tensors that enter it and that no block before it was given.
        graph_bytes: What its graph holds while the cotangent passes it, besides these.
        attention_bytes: Its attention's outputs.
        seconds: The time of one run.
        attention_seconds: The part of it that attention takes, if its outputs can be kept.
    """

    name: str
    input_bytes: int
    graph_bytes: int
    attention_bytes: int
    seconds: float
    attention_seconds: float = 0.0


class Prices(NamedTuple):
    """The costs of all steps of a program as columns, named as in `StepCost` and `GraphCost`.

    Attributes:
        beside: Size of the state where its node is something else, as in a store; otherwise 0.
        first: ``first_backprop_bytes``, or ``backprop_bytes`` where that is None.
        stored: What a graph holds in the store.
        attention: Attention's outputs that a rerun is given.
    """

    node: Bytes
    kept: Bytes
    beside: Bytes
    result: Bytes
    advance: Bytes
    gradient: Bytes
    graph: Bytes
    record: Bytes
    backprop: Bytes
    first: Bytes
    stored: Bytes
    attention: Bytes
    forward_seconds: NDArray[np.float64]
    backward_seconds: NDArray[np.float64]


class PriceList:
    """What graphs of all steps cost at every level, from which a program's prices are picked.

    Args:
        costs: The cost of each step.
    """

    def __init__(self, costs: Sequence[StepCost]) -> None:
        self.costs = tuple(costs)
        self.sizes = np.array([_sizes(cost) for cost in costs], dtype=np.int64).T.copy()
        self.forward = np.array([cost.forward_seconds for cost in costs], dtype=np.float64)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The levels at which every step's cost is known."""
        known = frozenset.intersection(*(cost.levels for cost in self.costs))
        return tuple(level for level in LEVELS if level in known)

    @cached_property
    def graphs(self) -> NDArray[np.int64]:
        """Bytes of graphs by level, whether they are kept, step and kind."""
        each = [[[_graph_sizes(c, n, k) for c in self.costs] for k in _BOTH] for n in LEVELS]
        return np.array(each, dtype=np.int64)

    @cached_property
    def backward(self) -> NDArray[np.float64]:
        """Seconds of backward passes by level, whether the graph is kept, and step."""
        each = [[[_backward_seconds(c, n, k) for c in self.costs] for k in _BOTH] for n in LEVELS]
        return np.array(each, dtype=np.float64)

    def of(self, program: Program) -> Prices:
        """Return the prices of a program."""
        levels = np.frombuffer(program.levels, dtype=np.uint8)
        kept, steps = program.recorded_first.astype(np.intp), np.arange(program.num_steps)
        graphs = self.graphs[levels, kept, steps].T
        back = self.backward[levels, kept, steps]
        return Prices(*self.sizes, *graphs, self.forward, back)  # pyright: ignore[reportCallIssue]


def prices_of(program: Program, costs: Sequence[StepCost]) -> Prices:
    """Return the prices of one program; `PriceList` is for many."""
    return PriceList(costs).of(program)


_BOTH = (False, True)
UNKNOWN = 1 << 45  # bytes of a graph whose cost is not known: more than any device has


def _sizes(cost: StepCost) -> tuple[int, ...]:
    return (
        cost.node_bytes,
        cost.kept_bytes,
        0 if cost.stored_bytes is None else cost.node_bytes,
        cost.result_bytes,
        cost.advance_bytes,
        cost.gradient_bytes,
    )


def _graph_sizes(cost: StepCost, level: Level, kept: bool) -> tuple[int, ...]:
    if level not in cost.levels and not (kept and level is Level.ATTENTION):
        return (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, 0, 0)
    graph = cost.graph(level, kept=kept)
    first = graph.first_backprop_bytes
    return (
        graph.graph_bytes,
        graph.record_bytes,
        graph.backprop_bytes,
        graph.backprop_bytes if first is None else first,
        graph.stored_bytes,
        graph.attention_bytes,
    )


def _backward_seconds(cost: StepCost, level: Level, kept: bool) -> float:
    if level not in cost.levels:
        return cost.backward_seconds
    return cost.graph(level, kept=kept).backward_seconds
