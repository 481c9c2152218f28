"""Runs of steps for measurement: forward, and back through a graph of any kind."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from chainograd.blocks.attention import AttentionSeen
from chainograd.engine.abstract_step import AbstractCut, Recording, ReplayHooks
from chainograd.engine.accumulate import GradAccumulator
from chainograd.engine.kept_attention import KeptAttention
from chainograd.engine.run import Run
from chainograd.engine.step_graph import AbstractStepGraph
from chainograd.engine.step_result import StepResult
from chainograd.engine.surroundings import Surroundings
from chainograd.engine.vjp import Vjp
from chainograd.engine.weigh_blocks import BlockWeigher
from chainograd.frozen.conditions import takes_fast_path
from chainograd.metering import meter
from chainograd.plans.plan import BlockCost, GraphCost
from chainograd.replay.rng import RNGState
from chainograd.state import Cotangents, State
from chainograd.storage.kept_tensors import InPlace, Keeper
from chainograd.storage.paged import FakeStorage
from chainograd.tensors.devices import synchronize
from chainograd.tensors.flops import CountedFlops
from chainograd.torch_internals.modes import is_fake


@dataclass(slots=True, eq=False)
class Trial:
    """What all measured runs of a call share.

    Attributes:
        run: The run whose steps are measured.
        vjp: Computes gradients.
        surroundings: What the measured runs see.
        limit: Bytes above which a whole graph is of no use.
        fake: Whether the tensors are fake.
        away: Whether the chain's store is outside the device.
        fast_path: Whether torch's attention layers take a path whose outputs cannot be kept.
        graphs: What was measured of graphs that are cut, by what steps have alike.
        attended: The same of whole graphs whose attention does not run again.
    """

    run: Run
    vjp: Vjp
    surroundings: Surroundings
    limit: int | None
    fake: bool
    away: bool
    fast_path: bool
    graphs: dict[Hashable, tuple[tuple[GraphCost, ...], tuple[BlockCost, ...]]] = field(
        default_factory=dict
    )
    attended: dict[Hashable, tuple[tuple[GraphCost, ...], float]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, vjp: Vjp, limit: int | None) -> Trial:
        """Return a trial of a run."""
        surroundings = replace(run.surroundings, random=[], trained=[], elsewhere=True)
        surroundings.begin()
        fake = any(is_fake(leaf) for leaf in run.x_T.tensors)
        away = run.options.store.elsewhere(run.x_T.device)
        fast_path = takes_fast_path(run.surroundings.context.modes)
        return cls(run, vjp, surroundings, limit, fake, away, fast_path)

    @contextmanager
    def keeper(self, *, kept: bool) -> Iterator[Keeper]:
        """Return what keeps tensors of a graph, kept from the forward pass on or not."""
        run = self.run
        if not kept or not self.away:
            yield InPlace()
            return
        store = run.options.store
        storage = FakeStorage() if self.fake else store.storage(run.x_T, lambda: 0)
        try:
            yield store.keeper(storage, run.x_T.device, run.lasting_tensors())
        finally:
            storage.close()


class GoneBack(NamedTuple):
    """What a graph took.

    Attributes:
        record_bytes: The most bytes while it was recorded.
        kept_bytes: The bytes after that.
        first: The most bytes while the cotangent passed it, with no sums to add to.
        further: The same with sums.
        record_seconds: The time of recording it.
        record_flops: The operations of recording it.
        seconds: The time of the cotangent's way.
        flops: The operations on that way.
        stored: What the graph put into the store.
    """

    record_bytes: int
    kept_bytes: int
    first: int
    further: int
    record_seconds: float
    record_flops: int
    seconds: float
    flops: int
    stored: int


class TrialRuns(NamedTuple):
    """The runs that a step is measured by, each with the same random numbers."""

    trial: Trial
    step: int
    state: State
    wanted: list[bool]
    random: RNGState

    @property
    def run(self) -> Run:
        """The run whose steps are measured."""
        return self.trial.run

    def begin(self) -> None:
        """Put the random streams back to where they stood before the step."""
        self.run.surroundings.rng.set(self.random)

    def passed(self) -> tuple[State, list[bool]]:
        """Run the step as the forward pass will; return its result and where that has gradients."""
        passes = self.run.options.passes(self.step)
        result = self.forward(Recording.DISCARD if passes else Recording.OFF)
        return result.leaving, result.wanted

    def forward(
        self, record: Recording = Recording.DISCARD, cut: AbstractCut | None = None
    ) -> StepResult:
        """Run the step."""
        self.begin()
        i, mark, step = self.step, self.run.mark(self.step), self.run.step
        return step.run(i, self.state, self.wanted, mark, record=record, rewind=self.begin, cut=cut)

    def record(self, cut: AbstractCut | None) -> AbstractStepGraph:
        """Run the step with its graph."""
        self.begin()
        hooks = ReplayHooks(nullcontext(), _unchecked, self.run.mark(self.step), cut)
        return self.run.step.rerun(self.step, self.state, self.wanted, hooks)

    def advanced(self) -> tuple[float, int, int, bool, StepResult]:
        """Run the step without keeping its graph.

        Returns:
            Its seconds, the most bytes it took, its operations, whether its attention's outputs
            could be kept, its result.
        """
        device, attention = self.state.device, AttentionSeen()
        watched = nullcontext() if self.trial.fast_path else attention
        with meter(device) as reading, self._counted() as counted:
            started = _now(device)
            with watched:
                after = self.forward()
            seconds = _now(device) - started
            return seconds, reading.lap(), counted.flops, attention.seen, after

    def gone_back(
        self,
        cotangents: Cotangents,
        cut: AbstractCut | None,
        *,
        weigher: BlockWeigher | None = None,
        keeper: Keeper | None = None,
    ) -> GoneBack:
        """Record the step and send cotangents back through it; twice, if it adds to sums."""
        device, accumulator = self.state.device, GradAccumulator(len(self.run.shared.inside))
        keeper = keeper or InPlace()
        with meter(device) as reading, self._counted() as counted:
            if weigher is not None:
                weigher.reading = reading
            begun = _now(device)
            graph = self.record(cut)
            record_seconds = _now(device) - begun
            keeper.settle()
            record_bytes, kept_bytes = reading.lap(), reading.live_bytes
            stored = keeper.stored_bytes
            record_flops = counted.lap()
            started = _now(device)
            graph.send_back(cotangents, accumulator, self.trial.vjp)
            seconds, flops = _now(device) - started, counted.lap()
            del graph
            first = further = reading.lap()
            if weigher is not None:
                weigher.reading = None
            if any(g is not None for g in accumulator.values):
                if isinstance(cut, KeptAttention):
                    self.forward(cut=cut)
                    keeper.settle()
                beside = reading.now()
                graph = self.record(cut)
                keeper.settle()
                reading.lap()
                accumulator.begin()
                graph.send_back(cotangents, accumulator, self.trial.vjp)
                further = reading.lap() - beside
        return GoneBack(
            record_bytes, kept_bytes, first, further, record_seconds, record_flops, seconds, flops,
            stored,
        )  # fmt: skip

    def _counted(self) -> AbstractContextManager[CountedFlops]:
        """Return a context that counts operations if tensors are fake, for it takes time."""
        return CountedFlops() if self.trial.fake else nullcontext(CountedFlops())


def _unchecked(result: StepResult) -> None:
    """Compare nothing: this run only measures."""


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()
