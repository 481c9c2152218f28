"""What a step costs: bytes and seconds, measured once on real tensors or on fake ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from chainograd.engine.abstract_step import Recording, ReplayHooks
from chainograd.engine.accumulate import GradAccumulator
from chainograd.engine.run import Run
from chainograd.engine.step_graph import AbstractStepGraph
from chainograd.engine.step_result import StepResult
from chainograd.engine.vjp import Vjp
from chainograd.metering import meter, storages
from chainograd.plans.plan import StepCost
from chainograd.replay.buffers import buffer_copies
from chainograd.replay.rng import RNGState
from chainograd.state import Cotangents, State
from chainograd.tensors.devices import synchronize
from chainograd.tensors.parts import tensor_bytes
from chainograd.torch_internals.modes import is_fake
from chainograd.torch_internals.tensors import storage_id

Kind = Callable[[int], Hashable]


def measure(run: Run, kind: Kind | None = None) -> tuple[StepCost, ...]:
    """Return what each step costs, running each kind of step forward and back once.

    A step that adds to gradients of what the steps share runs forward and back once more, because
    then there are sums to add to.

    Args:
        run: The run. Its comparison remembers the states that the steps return.
        kind: Tells which steps are alike; by default every step is measured.

    Returns:
        One cost a step. The first cost measured is measured twice, to be rid of first-call costs.
    """
    seen: dict[Hashable, StepCost] = {}
    result = []
    state, wanted = run.x_T, run.first_pass.wanted[0]
    rng, vjp = run.surroundings.rng, Vjp(run.shared)
    needed = wanted  # what it would be if the gradient passed all steps
    for i in range(run.plan.num_steps):
        key, before = i if kind is None else kind(i), rng.state()
        runs = _Runs(run, vjp, i, state, wanted, before)
        with buffer_copies(run.surroundings.buffers.beforehand()):
            whole = runs._replace(wanted=needed)
            if not seen:
                whole.cost()
            if key not in seen:
                seen[key] = whole.cost()
            if run.options.grad_steps is not None:
                needed = whole.forward().wanted
        result.append(seen[key])
        state, wanted = runs.passed()
        if run.options.grad_steps is None:
            needed = wanted
        if not run.kind.compiled:  # else the code that is not compiled here takes other kernels
            run.comparison.measured.saw(i + 1, state.leaves)
    return tuple(result)


class _Runs(NamedTuple):
    """The runs that a step is measured by, each with the same random numbers."""

    run: Run
    vjp: Vjp
    step: int
    state: State
    wanted: list[bool]
    random: RNGState

    def begin(self) -> None:
        self.run.surroundings.rng.set(self.random)

    def passed(self) -> tuple[State, list[bool]]:
        """Run the step as the forward pass will; return its result and where that has gradients."""
        passes = self.run.options.passes(self.step)
        result = self.forward(Recording.DISCARD if passes else Recording.OFF)
        return result.leaving, result.wanted

    def forward(self, record: Recording = Recording.DISCARD) -> StepResult:
        self.begin()
        i, mark = self.step, self.run.mark(self.step)
        step = self.run.step
        return step.run(i, self.state, self.wanted, mark, record=record, rewind=self.begin)

    def record(self) -> AbstractStepGraph:
        self.begin()
        hooks = ReplayHooks(nullcontext(), _unchecked, self.run.mark(self.step))
        return self.run.step.rerun(self.step, self.state, self.wanted, hooks)

    def cost(self) -> StepCost:
        """Return the cost of the step: run it, record it, and go back through it."""
        state = self.state
        forward_seconds, advance_bytes, result_bytes, cotangents = self.advanced()
        record_bytes, kept_bytes, backward_seconds, first, further = self.gone_back(cotangents)
        fake = any(is_fake(leaf) for leaf in state.tensors)
        return StepCost(
            node_bytes=_bytes(state.tensors),
            result_bytes=result_bytes,
            graph_bytes=max(kept_bytes - result_bytes, 0),
            advance_bytes=advance_bytes,
            record_bytes=record_bytes,
            backprop_bytes=further - result_bytes,
            gradient_bytes=sum(map(tensor_bytes, self.run.shared.inside)),
            forward_seconds=1.0 if fake else forward_seconds,
            backward_seconds=1.0 if fake else backward_seconds,
            stored_bytes=self.run.options.store.stored_bytes(state),
            first_backprop_bytes=first - result_bytes,
        )

    def advanced(self) -> tuple[float, int, int, Cotangents]:
        """Run the step without keeping its graph.

        Returns:
            Its seconds, the most bytes it took, the bytes of its result, cotangents for that.
        """
        device = self.state.device
        with meter(device) as reading:
            started = _now(device)
            after = self.forward()
            seconds = _now(device) - started
            most = reading.lap()
            leaves = enumerate(after.leaving.leaves)
            cotangents = {p: torch.ones_like(leaf) for p, leaf in leaves if after.wanted[p]}
            return seconds, most, _bytes(after.leaving.tensors), cotangents

    def gone_back(self, cotangents: Cotangents) -> tuple[int, int, float, int, int]:
        """Record the step and send cotangents back through it; twice, if it adds to sums.

        Returns:
            The most bytes that recording took, and those left after it; the seconds back, and the
            most bytes the first time, and with sums to add to.
        """
        device, accumulator = self.state.device, GradAccumulator(len(self.run.shared.inside))
        with meter(device) as reading:
            graph = self.record()
            record_bytes, kept_bytes = reading.lap(), reading.live_bytes
            started = _now(device)
            graph.send_back(cotangents, accumulator, self.vjp)
            seconds = _now(device) - started
            del graph
            first = further = reading.lap()
            if any(g is not None for g in accumulator.values):
                beside = reading.live_bytes
                graph = self.record()
                reading.lap()
                accumulator.begin()
                graph.send_back(cotangents, accumulator, self.vjp)
                further = reading.lap() - beside
        return record_bytes, kept_bytes, seconds, first, further


def _unchecked(result: StepResult) -> None:
    """Compare nothing: this run only measures."""


def _bytes(tensors: list[Tensor]) -> int:
    found = {storage_id(s): s.nbytes() for tensor in tensors for s in storages(tensor)}
    return sum(found.values())


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()
