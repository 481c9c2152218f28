"""What a step costs: bytes and seconds, measured once on real tensors or on fake ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from chainograd.engine.accumulate import GradAccumulator
from chainograd.engine.run import Run
from chainograd.engine.step import ReplayHooks, StepGraph, StepResult
from chainograd.metering import meter, storages
from chainograd.plans.plan import StepCost
from chainograd.replay.buffers import buffer_copies
from chainograd.replay.rng import RNGState
from chainograd.state import State
from chainograd.tensors.devices import synchronize
from chainograd.tensors.parts import tensor_bytes
from chainograd.torch_internals.modes import is_fake
from chainograd.torch_internals.tensors import storage_id

Kind = Callable[[int], Hashable]


def measure(run: Run, kind: Kind | None = None) -> tuple[StepCost, ...]:
    """Return what each step costs, running each kind of step forward and back once.

    One that gives gradients to what the steps share goes forward and back once more: there are sums
    to add to then.

    Args:
        run: The steps, with what they see. It is told of the states that they give.
        kind: Tells which steps are alike; by default none are taken to be.

    Returns:
        One cost a step. The first cost measured is measured twice, to be rid of first-call costs.
    """
    run.steps.note_backward()
    seen: dict[Hashable, StepCost] = {}
    result = []
    state, wanted = run.x_T, run.wanted[0]
    needed = wanted  # what it would be if the gradient passed all steps
    for i in range(run.steps.num_steps):
        key, before = i if kind is None else kind(i), run.rng.state()
        runs = _Runs(run, i, state, wanted, before)
        with buffer_copies(run.buffers.beforehand()):
            whole = runs._replace(wanted=needed)
            if not seen:
                whole.cost()
            if key not in seen:
                seen[key] = whole.cost()
            if run.grad_steps is not None:
                needed = whole.forward().wanted
        result.append(seen[key])
        state, wanted = runs.passed()
        if run.grad_steps is None:
            needed = wanted
        if not run.compiled:  # else the code that is not compiled here takes other kernels
            run.foreseen.saw(i + 1, state.leaves)
    return tuple(result)


class _Runs(NamedTuple):
    """The runs that a step is measured by, each with the same random numbers."""

    run: Run
    step: int
    state: State
    wanted: list[bool]
    random: RNGState

    def begin(self) -> None:
        self.run.rng.set(self.random)

    def passed(self) -> tuple[State, list[bool]]:
        """Run the step as the forward pass will; return its result and where that has gradients."""
        if self.run.passes(self.step):
            return self.forward()[:2]
        self.begin()
        after = self.run.steps.unrecorded(self.step, self.state)
        return after, [False] * len(after.leaves)

    def forward(self) -> StepResult:
        self.begin()
        mark = self.run.mark(self.step)
        return self.run.steps.advance(self.step, self.state, self.wanted, mark, self.begin)

    def record(self) -> StepGraph:
        self.begin()
        rerun = ReplayHooks(nullcontext(), _unchecked, self.run.mark(self.step))
        return self.run.steps.again(self.step, self.state, self.wanted, rerun)

    def cost(self) -> StepCost:
        """Return the cost of the step: run it, record it, and go back through it."""
        steps, state, store = self.run.steps, self.state, self.run.store
        device = state.device
        with meter(device) as reading:
            started = _now(device)
            after = self.forward()
            forward_seconds = _now(device) - started
            advance_bytes = reading.lap()
            result_bytes = _bytes(after.leaving.tensors)
            cotangents = {
                place: torch.ones_like(leaf)
                for place, leaf in enumerate(after.leaving.leaves)
                if after.wanted[place]
            }
            del after
        accumulator = GradAccumulator(len(steps.shared))
        with meter(device) as reading:
            recorded = self.record()
            record_bytes, kept_bytes = reading.lap(), reading.live_bytes
            started = _now(device)
            steps.backprop(recorded, cotangents, {}, accumulator)
            backward_seconds = _now(device) - started
            del recorded
            first_backprop_bytes = backprop_bytes = reading.lap() - result_bytes
            if any(g is not None for g in accumulator.values):  # once more, with sums to add to
                beside = reading.live_bytes
                recorded = self.record()
                reading.lap()
                accumulator.begin()
                steps.backprop(recorded, cotangents, {}, accumulator)
                backprop_bytes = reading.lap() - beside - result_bytes
        fake = any(is_fake(leaf) for leaf in state.tensors)
        return StepCost(
            node_bytes=_bytes(state.tensors),
            result_bytes=result_bytes,
            graph_bytes=max(kept_bytes - result_bytes, 0),
            advance_bytes=advance_bytes,
            record_bytes=record_bytes,
            backprop_bytes=backprop_bytes,
            gradient_bytes=sum(map(tensor_bytes, steps.shared)),
            forward_seconds=1.0 if fake else forward_seconds,
            backward_seconds=1.0 if fake else backward_seconds,
            stored_bytes=store.stored_bytes(state),
            first_backprop_bytes=first_backprop_bytes,
        )


def _unchecked(result: StepResult) -> None:
    """See nothing in a run that only measures."""


def _bytes(tensors: list[Tensor]) -> int:
    found = {storage_id(s): s.nbytes() for tensor in tensors for s in storages(tensor)}
    return sum(found.values())


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()
