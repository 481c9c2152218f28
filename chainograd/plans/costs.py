"""What a plan holds during each of its actions, and how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chainograd.plans.actions import (
    ADVANCE,
    BACKPROP,
    DROP,
    KEEP,
    LOAD,
    RECORD,
    Codes,
    Program,
    indices_of,
    kinds_of,
)

Bytes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step costs; bytes are those alive besides kept nodes and graphs.

    Attributes:
        node_bytes: The state that enters the step.
        result_bytes: The state that leaves the step; its cotangent is as large.
        graph_bytes: What is kept of a recorded step until its backward pass, besides these states.
        advance_bytes: The most that is alive while the step runs without a graph.
        record_bytes: The most that is alive while it runs with one.
        backprop_bytes: The most that is alive while the cotangent passes, the graph included.
        gradient_bytes: Gradients of what the steps share.
        forward_seconds: Time to run it.
        backward_seconds: Time of its backward pass.
        stored_bytes: What the state takes on its device as a kept node, where a store keeps
            something else than the state itself.
        first_backprop_bytes: What ``backprop_bytes`` is for the first cotangent that passes, where
            there are no gradients yet to be added to; None if it is the same.
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

    @property
    def kept_bytes(self) -> int:
        """What a kept node takes on the device."""
        return self.node_bytes if self.stored_bytes is None else self.stored_bytes


class Prices(NamedTuple):
    """Costs of all steps as columns, as in `StepCost`.

    Attributes:
        beside: What the state takes besides its kept node: nothing, unless a store keeps
            something else.
        first: ``first_backprop_bytes``.
    """

    node: Bytes
    kept: Bytes
    beside: Bytes
    result: Bytes
    graph: Bytes
    advance: Bytes
    record: Bytes
    backprop: Bytes
    first: Bytes
    gradient: Bytes
    forward_seconds: NDArray[np.float64]
    backward_seconds: NDArray[np.float64]

    @classmethod
    def of(cls, costs: Sequence[StepCost]) -> Prices:
        """Return the costs' columns."""
        rows = [
            (
                c.node_bytes,
                c.kept_bytes,
                0 if c.stored_bytes is None else c.node_bytes,
                c.result_bytes,
                c.graph_bytes,
                c.advance_bytes,
                c.record_bytes,
                c.backprop_bytes,
                c.backprop_bytes if c.first_backprop_bytes is None else c.first_backprop_bytes,
                c.gradient_bytes,
            )
            for c in costs
        ]
        seconds = [(c.forward_seconds, c.backward_seconds) for c in costs]
        columns = np.array(rows, dtype=np.int64).T.copy()
        times = np.array(seconds, dtype=np.float64).T.copy()
        return cls(*columns, *times)


class Holding(NamedTuple):
    """What is held during each action: how many nodes and graphs, and how many bytes in all."""

    nodes: Bytes
    graphs: Bytes
    bytes: Bytes


def holding(program: Program, prices: Prices) -> Holding:
    """Return what is held during each action of a program."""
    M, turn = program.num_steps, len(program.forward)
    codes = np.concatenate([program.forward, program.backward])
    kinds, i = kinds_of(codes), indices_of(codes)
    count = len(codes)
    at = np.arange(count)
    backward = at >= turn
    kept, dropped, recorded = kinds == KEEP, kinds == DROP, kinds == RECORD
    passed = (kinds == BACKPROP) & _marked(M, i[recorded])[i]  # else no gradient passes it
    first = _marked(M, i[:turn][recorded[:turn]])[i]  # steps that the forward pass recorded

    sign = kept.astype(np.int64) - dropped
    nodes, bytes_ = np.cumsum(sign), np.cumsum(sign * prices.kept[i])
    graphs = np.cumsum(recorded) - _before(np.cumsum(passed))
    # The state that enters a graph of the forward pass is on the device as long as the graph.
    graph = prices.graph[i] + np.where(first, prices.beside[i], 0)
    bytes_ += _before(np.cumsum(np.where(recorded, graph, 0) - np.where(passed, graph, 0)))

    # The state between two actions is alive too, unless it is a node or the result.
    state = np.where(kinds == BACKPROP, np.where(passed, i, _states(kinds, i)), i)
    loose = np.where(dropped | (state == M), 0, _beside(kinds, i, state, prices))
    loose[passed & first] = 0
    loose += np.where(passed & (i < M - 1), prices.result[i], 0)  # what it gave, no node any more
    bytes_ += loose
    # A stored node: the next one is on its way back already.
    bytes_ += np.where(backward, prices.result[i] + prices.beside[i], 0)
    # Once the result is there it stays, and on the way back the caller's cotangent.
    there = np.flatnonzero((i == M - 1) & ((kinds == ADVANCE) | recorded))
    bytes_[there[0] + 1 :] += prices.result[-1]
    last = _before(np.maximum.accumulate(np.where(passed, at, -1)), -1)
    bytes_ += np.where(last >= 0, prices.result[-1], 0)
    gradient = np.where(last >= 0, prices.gradient[i[last]], 0)
    bytes_ += gradient

    backprop = np.where(gradient > 0, prices.backprop[i], prices.first[i]) - prices.graph[i]
    extra = np.where(kinds == ADVANCE, prices.advance[i], 0)
    bytes_ += np.where(recorded, prices.record[i], np.where(passed, backprop, extra))
    return Holding(nodes, graphs, bytes_)


def peak(program: Program, prices: Prices) -> int:
    """Return the most bytes that are held at once."""
    return int(holding(program, prices).bytes.max())


def runs(program: Program) -> NDArray[np.int64]:
    """Return how often each step runs."""
    codes = np.concatenate([program.forward, program.backward])
    kinds, i = kinds_of(codes), indices_of(codes)
    return np.bincount(i[(kinds == RECORD) | (kinds == ADVANCE)], minlength=program.num_steps)


def seconds(program: Program, prices: Prices) -> float:
    """Return the time that all steps take, forward and back."""
    codes = np.concatenate([program.forward, program.backward])
    recorded = _marked(program.num_steps, indices_of(codes[kinds_of(codes) == RECORD]))
    back = np.where(recorded, prices.backward_seconds, 0.0)
    # Rounded once, so that a plan that runs nothing more often is never slower by rounding.
    return fsum([*(runs(program) * prices.forward_seconds).tolist(), *back.tolist()])


def _before(values: Bytes, begin: int = 0) -> Bytes:
    """Return what the values were before each action."""
    return np.concatenate([[begin], values[:-1]])


def _marked(count: int, indices: Codes) -> NDArray[np.bool_]:
    marked = np.zeros(count, dtype=bool)
    marked[indices] = True
    return marked


def _states(kinds: Codes, i: Codes) -> Codes:
    """Return the current state before each action."""
    runs = (kinds == ADVANCE) | (kinds == RECORD)
    changed = np.maximum.accumulate(np.where(runs | (kinds == LOAD), np.arange(len(i)), -1))
    before = _before(changed, -1)
    return np.where(before >= 0, np.where(runs, i + 1, i)[before], 0)


def _beside(kinds: Codes, i: Codes, state: Codes, prices: Prices) -> Bytes:
    """Return what the current state takes besides the kept nodes, which may hold it."""
    events = np.flatnonzero((kinds == KEEP) | (kinds == DROP))
    held = np.minimum(state, len(prices.node) - 1)
    if not len(events):
        return prices.node[held]
    order = events[np.argsort(i[events], kind="stable")]
    count = len(i)
    keys = i[order].astype(np.int64) * count + order
    asked = state.astype(np.int64) * count + np.arange(count)
    last = np.searchsorted(keys, asked, side="right") - 1
    latest = order[last]  # the last time that this state was kept or dropped
    kept = (last >= 0) & (i[latest] == state) & (kinds[latest] == KEEP)
    # A node in a store is something else than the state on the device.
    stored = prices.beside[held] > 0
    return np.where((kept | (kinds == LOAD)) & ~stored, 0, prices.node[held])
