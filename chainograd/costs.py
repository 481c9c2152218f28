"""What a step costs: bytes and seconds, measured once on real tensors or on fake ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from chainograd.dense_parts import tensor_bytes
from chainograd.devices import synchronize
from chainograd.metering import meter, storages
from chainograd.plan import StepCost
from chainograd.states import State, differentiable
from chainograd.steps import Steps
from chainograd.stores import Store
from chainograd.sums import Sums

Kind = Callable[[int], Hashable]


def measure(
    steps: Steps, x_T: State, wanted: list[bool], store: Store, kind: Kind | None = None
) -> tuple[StepCost, ...]:
    """Return what each step costs, running each kind of step forward and back once.

    One that gives gradients to what the steps share goes forward and back once more: there are sums
    to add to then.

    Args:
        steps: The steps, with what they see.
        x_T: The state that enters step 0.
        wanted: Which leaves of it need a gradient.
        store: Where nodes will live.
        kind: Tells which steps are alike; by default none are taken to be.

    Returns:
        One cost a step. The first cost measured is measured twice, to be rid of first-call costs.
    """
    seen: dict[Hashable, StepCost] = {}
    result = []
    state = x_T
    for i in range(steps.num_steps):
        key = i if kind is None else kind(i)
        needed = wanted if i == 0 else [differentiable(leaf) for leaf in state.leaves]
        if not seen:
            measure_step(steps, i, state, needed, store)
        if key not in seen:
            seen[key] = measure_step(steps, i, state, needed, store)
        result.append(seen[key])
        state = steps.advance(i, state)
    return tuple(result)


def measure_step(steps: Steps, i: int, state: State, wanted: list[bool], store: Store) -> StepCost:
    """Return the cost of one step: run it without a graph, record it, and go back through it."""
    device = state.device
    with meter(device) as reading:
        started = _now(device)
        after = steps.advance(i, state)
        forward_seconds = _now(device) - started
        advance_bytes = reading.lap()
        result_bytes = _bytes(after.tensors)
        cotangents = {
            place: torch.ones_like(leaf)
            for place, leaf in enumerate(after.leaves)
            if differentiable(leaf)
        }
        del after
    sums = Sums(len(steps.shared))
    with meter(device) as reading:
        recorded = steps.record(i, state, wanted)
        record_bytes, kept_bytes = reading.lap(), reading.live_bytes
        started = _now(device)
        steps.backprop(recorded, cotangents, {}, sums)
        backward_seconds = _now(device) - started
        del recorded
        first_backprop_bytes = backprop_bytes = reading.lap() - result_bytes
        if any(g is not None for g in sums.values):  # once more, with sums to add to
            beside = reading.live_bytes
            recorded = steps.record(i, state, wanted)
            reading.lap()
            sums.begin()
            steps.backprop(recorded, cotangents, {}, sums)
            backprop_bytes = reading.lap() - beside - result_bytes
    fake = any(isinstance(leaf, FakeTensor) for leaf in state.tensors)
    return StepCost(
        node_bytes=_bytes(state.tensors),
        result_bytes=result_bytes,
        graph_bytes=max(kept_bytes - result_bytes, 0),
        advance_bytes=advance_bytes,
        record_bytes=record_bytes,
        backprop_bytes=backprop_bytes,
        gradient_bytes=sum(tensor_bytes(tensor) for tensor in steps.shared),
        forward_seconds=1.0 if fake else forward_seconds,
        backward_seconds=1.0 if fake else backward_seconds,
        stored_bytes=store.stored_bytes(state),
        first_backprop_bytes=first_backprop_bytes,
    )


def _bytes(tensors: list[Tensor]) -> int:
    found = {s._cdata: s.nbytes() for tensor in tensors for s in storages(tensor)}
    return sum(found.values())


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()
