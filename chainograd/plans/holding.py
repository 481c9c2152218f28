"""What a plan holds during each of its actions, and how long the plan takes."""

from __future__ import annotations

from math import fsum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chainograd.plans.costs import Bytes, Prices
from chainograd.plans.levels import Level
from chainograd.plans.program import (
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
    mask_of,
)

Mask = NDArray[np.bool_]


class Holding(NamedTuple):
    """What is held during each action.

    Attributes:
        nodes: The number of nodes.
        graphs: The number of graphs.
        bytes: All bytes on the device.
        stored: Bytes in the store, if that is not the device.
    """

    nodes: Bytes
    graphs: Bytes
    bytes: Bytes
    stored: Bytes


class Events(NamedTuple):
    """The actions of both passes as columns, one entry for each action.

    Attributes:
        num_steps: M.
        kinds: Kind of the action.
        i: Step of the action.
        backward: Whether the action belongs to the backward pass.
        recorded: Whether the action is a `Record`.
        passed: Whether the action is a `Backprop` of a step with a graph. The gradient does not
            pass a step without one.
        first: Whether the forward pass recorded the action's step.
        last: Position of the last ``passed`` action before this action, or -1.
        attended: Whether the action runs a step for the first time whose rerun is given attention's
            outputs.
    """

    num_steps: int
    kinds: Codes
    i: Codes
    backward: Mask
    recorded: Mask
    passed: Mask
    first: Mask
    last: Bytes
    attended: Mask

    @classmethod
    def of(cls, program: Program) -> Events:
        """Return the events of a program."""
        M, turn = program.num_steps, len(program.forward)
        codes = np.concatenate([program.forward, program.backward])
        kinds, i = kinds_of(codes), indices_of(codes)
        at = np.arange(len(codes))
        recorded = kinds == RECORD
        passed = (kinds == BACKPROP) & mask_of(M, i[recorded])[i]
        first = mask_of(M, i[:turn][recorded[:turn]])[i]
        last = _before(np.maximum.accumulate(np.where(passed, at, -1)), -1)
        levels = np.frombuffer(program.levels, dtype=np.uint8)
        attended = (levels[i] == Level.ATTENTION) & (kinds == ADVANCE) & (at < turn)
        return cls(M, kinds, i, at >= turn, recorded, passed, first, last, attended)


def holding(program: Program, prices: Prices) -> Holding:
    """Return what is held during each action of a program."""
    events = Events.of(program)
    nodes, total = _nodes(events, prices)
    graphs, graph_bytes = _graphs(events, prices)
    total += graph_bytes
    total += _current_states(events, prices)
    total += _cotangents(events, prices)
    gradient = np.where(events.last >= 0, prices.gradient[events.i[events.last]], 0)
    total += gradient
    total += _working(events, gradient, prices)
    return Holding(nodes, graphs, total, _stored(events, prices))


def peak(program: Program, prices: Prices) -> int:
    """Return the most bytes that are held at once."""
    return int(holding(program, prices).bytes.max())


def most_stored(program: Program, prices: Prices) -> int:
    """Return the most bytes that are held at once in the store, outside the device."""
    return int(holding(program, prices).stored.max())


def runs(program: Program) -> NDArray[np.int64]:
    """Return how often each step runs."""
    codes = np.concatenate([program.forward, program.backward])
    kinds, i = kinds_of(codes), indices_of(codes)
    return np.bincount(i[(kinds == RECORD) | (kinds == ADVANCE)], minlength=program.num_steps)


def seconds(program: Program, prices: Prices) -> float:
    """Return the time that all steps take, in both passes together."""
    codes = np.concatenate([program.forward, program.backward])
    recorded = mask_of(program.num_steps, indices_of(codes[kinds_of(codes) == RECORD]))
    back = np.where(recorded, prices.backward_seconds, 0.0)
    # Rounded once, so that rounding never makes a plan that runs fewer steps look slower.
    return fsum([*(runs(program) * prices.forward_seconds).tolist(), *back.tolist()])


def _nodes(events: Events, prices: Prices) -> tuple[Bytes, Bytes]:
    """Return the number of nodes and their bytes."""
    sign = (events.kinds == KEEP).astype(np.int64) - (events.kinds == DROP)
    return np.cumsum(sign), np.cumsum(sign * prices.kept[events.i])


def _graphs(events: Events, prices: Prices) -> tuple[Bytes, Bytes]:
    """Return the number of graphs and their bytes; a graph being recorded counts only as one."""
    i, recorded, passed = events.i, events.recorded, events.passed
    # A graph of the forward pass holds the state that enters its step, even if the node is stored
    # elsewhere.
    size = prices.graph[i] + np.where(events.first, prices.beside[i], 0)
    change = np.where(recorded, size, 0) - np.where(passed, size, 0)
    change += np.where(events.attended, prices.attention[i], 0)
    change -= np.where(passed & ~events.first, prices.attention[i], 0)
    graphs = np.cumsum(recorded) - _before(np.cumsum(passed, dtype=np.int64))
    return graphs, _before(np.cumsum(change))


def _stored(events: Events, prices: Prices) -> Bytes:
    """Return the bytes in the store."""
    i, recorded, passed = events.i, events.recorded & ~events.backward, events.passed
    sign = (events.kinds == KEEP).astype(np.int64) - (events.kinds == DROP)
    change = np.where(recorded | events.attended, prices.stored[i], 0)
    change -= np.where(passed, prices.stored[i], 0)
    return np.cumsum(sign * prices.beside[i]) + np.cumsum(change)


def _current_states(events: Events, prices: Prices) -> Bytes:
    """Return the bytes of the current state where neither a node nor the result holds it."""
    kinds, i, passed = events.kinds, events.i, events.passed
    M = events.num_steps
    state = np.where(kinds == BACKPROP, np.where(passed, i, _states(kinds, i)), i)
    loose = np.where((kinds == DROP) | (state == M), 0, _beside(kinds, i, state, prices))
    loose[passed & events.first] = 0
    # The state that the step returned, whose node is gone by now.
    return loose + np.where(passed & (i < M - 1), prices.result[i], 0)


def _cotangents(events: Events, prices: Prices) -> Bytes:
    """Return the bytes of the result, of cotangents, and of a stored node on its way back."""
    i, kinds, result = events.i, events.kinds, prices.result
    held = np.where(events.backward, result[i] + prices.beside[i], 0)
    # The result stays from the moment it is there, and the caller holds its cotangent.
    there = np.flatnonzero((i == events.num_steps - 1) & ((kinds == ADVANCE) | events.recorded))
    held[there[0] + 1 :] += result[-1]
    held += np.where(events.last >= 0, result[-1], 0)
    return held


def _working(events: Events, gradient: Bytes, prices: Prices) -> Bytes:
    """Return the bytes that each action needs while it runs."""
    i = events.i
    backprop = np.where(gradient > 0, prices.backprop[i], prices.first[i]) - prices.graph[i]
    advance = np.where(events.kinds == ADVANCE, prices.advance[i], 0)
    return np.where(events.recorded, prices.record[i], np.where(events.passed, backprop, advance))


def _before(values: Bytes, begin: int = 0) -> Bytes:
    """Return the values before each action."""
    return np.concatenate([[begin], values[:-1]])


def _states(kinds: Codes, i: Codes) -> Codes:
    """Return the current state before each action."""
    runs = (kinds == ADVANCE) | (kinds == RECORD)
    changed = np.maximum.accumulate(np.where(runs | (kinds == LOAD), np.arange(len(i)), -1))
    before = _before(changed, -1)
    return np.where(before >= 0, np.where(runs, i + 1, i)[before], 0)


def _beside(kinds: Codes, i: Codes, state: Codes, prices: Prices) -> Bytes:
    """Return the bytes of the current state, or 0 where a node is that same tensor."""
    held = np.minimum(state, len(prices.node) - 1)
    # A node in a store is not the tensor on the device.
    stored = prices.beside[held] > 0
    shared = (_is_node(kinds, i, state) | (kinds == LOAD)) & ~stored
    return np.where(shared, 0, prices.node[held])


def _is_node(kinds: Codes, i: Codes, state: Codes) -> Mask:
    """Return whether the current state is a node during each action."""
    events = np.flatnonzero((kinds == KEEP) | (kinds == DROP))
    if not len(events):
        return np.zeros(len(i), dtype=bool)
    order = events[np.argsort(i[events], kind="stable")]
    count = len(i)
    keys = i[order].astype(np.int64) * count + order
    asked = state.astype(np.int64) * count + np.arange(count)
    last = np.searchsorted(keys, asked, side="right") - 1
    latest = order[last]  # the last Keep or Drop of this state
    return (last >= 0) & (i[latest] == state) & (kinds[latest] == KEEP)
