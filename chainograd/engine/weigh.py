"""The runs that a step is measured by, at every level."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from chainograd.blocks.attention import AttentionSeen
from chainograd.engine.abstract_step import AbstractCut, Recording, ReplayHooks
from chainograd.engine.accumulate import GradAccumulator
from chainograd.engine.cutting import Cut
from chainograd.engine.first_run import NeedsWholeError
from chainograd.engine.kept_attention import KeptAttention
from chainograd.engine.level_costs import (
    bytes_of_blocks,
    with_attention,
    with_level_flops,
    with_level_seconds,
    without_whole,
)
from chainograd.engine.run import Run
from chainograd.engine.step_graph import AbstractStepGraph
from chainograd.engine.step_result import StepResult
from chainograd.engine.surroundings import Surroundings
from chainograd.engine.vjp import Vjp
from chainograd.engine.weigh_blocks import BlockWeigher
from chainograd.errors import ChainError
from chainograd.frozen.conditions import takes_fast_path
from chainograd.metering import meter, storages
from chainograd.plans.plan import BlockCost, GraphCost, Level, StepCost
from chainograd.replay.rng import RNGState
from chainograd.state import Cotangents, State
from chainograd.storage.kept_tensors import InPlace, Keeper
from chainograd.storage.paged import FakeStorage, Paged
from chainograd.tensors.devices import synchronize
from chainograd.tensors.flops import CountedFlops
from chainograd.tensors.parts import tensor_bytes
from chainograd.torch_internals.modes import is_fake
from chainograd.torch_internals.tensors import storage_id

TOO_LARGE = 4  # times the budget: graphs of blocks that need not be tried together

_logger = logging.getLogger(__name__)


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

    def cost(self) -> StepCost:
        """Return the cost of the step: run it, record it, and go back through it."""
        state, fake = self.state, self.trial.fake
        seconds, advance_bytes, flops, attends, after = self.advanced()
        result_bytes = _bytes(after.leaving.tensors)
        leaves = enumerate(after.leaving.leaves)
        cotangents = {p: torch.ones_like(leaf) for p, leaf in leaves if after.wanted[p]}
        graphs, blocks = self.cut_graphs(cotangents, advance_bytes, after)
        del after
        cost = StepCost(
            node_bytes=_bytes(state.tensors),
            result_bytes=result_bytes,
            graph_bytes=0,
            advance_bytes=advance_bytes,
            record_bytes=0,
            backprop_bytes=0,
            gradient_bytes=sum(map(tensor_bytes, self.run.shared.inside)),
            forward_seconds=1.0 if fake else seconds,
            stored_bytes=self.run.options.store.stored_bytes(state),
            graphs=graphs,
            blocks=blocks,
            forward_flops=flops if fake else None,
        )
        whole = self.whole(cotangents, cost)
        if whole is None:
            return with_level_seconds(without_whole(cost))
        cost = replace(
            cost,
            graph_bytes=max(whole.kept_bytes - result_bytes, 0),
            record_bytes=whole.record_bytes,
            backprop_bytes=whole.further - result_bytes,
            first_backprop_bytes=whole.first - result_bytes,
            backward_seconds=1.0 if fake else whole.seconds,
            backward_flops=whole.flops if fake else None,
            graphs=graphs
            + (self.attended(cotangents, cost, whole.record_seconds) if attends else ()),
        )
        return with_level_flops(cost) if fake else with_level_seconds(cost)

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

    def whole(self, cotangents: Cotangents, cost: StepCost) -> GoneBack | None:
        """Return what the step's whole graph takes; None if there is no room for it."""
        limit = self.trial.limit
        # Blocks share some of what they save, so a whole graph may be smaller than they are
        # together. If it does not fit into the device either, that is seen below.
        if cost.graphs and limit is not None and bytes_of_blocks(cost) > TOO_LARGE * limit:
            return None
        try:
            return self.gone_back(cotangents, None)
        except torch.OutOfMemoryError:
            if not cost.graphs:
                raise
        return None

    def attended(
        self, cotangents: Cotangents, cost: StepCost, seconds: float
    ) -> tuple[GraphCost, ...]:
        """Return what a whole graph costs whose attention does not run again, once for all alike.

        Args:
            cotangents: What is sent back.
            cost: What is known of the step.
            seconds: The time of a rerun in which attention runs.
        """
        alike = (cost.node_bytes, cost.advance_bytes, tuple(cotangents))
        known = self.trial.attended
        if alike not in known:
            graph = self.attention_graph(cotangents, cost)
            known[alike] = () if graph is None else (graph,), seconds
        graphs, before = known[alike]
        if self.trial.fake:
            return graphs
        saved = cost.forward_seconds / max(before, 1e-9)
        return tuple(
            replace(g, backward_seconds=-saved * max(before - g.backward_seconds, 0.0))
            for g in graphs
        )

    def cut_graphs(
        self, cotangents: Cotangents, advance_bytes: int, after: StepResult
    ) -> tuple[tuple[GraphCost, ...], tuple[BlockCost, ...]]:
        """Return what the step's graph costs at other levels than whole: note [Measured levels]."""
        nodes = 0 if after.signature is None else after.signature.nodes
        sizes = tuple(leaf.shape for leaf in self.state.tensors)
        alike = (sizes, advance_bytes, nodes, len(after.used), tuple(cotangents))
        known = self.trial.graphs
        if self.run.blocks.modules and alike not in known:
            try:
                known[alike] = self._cut_graphs(cotangents)
            except NeedsWholeError:
                known[alike] = (), ()
            except ChainError as error:
                if self.run.blocks.named:
                    raise
                # Nobody asked for blocks: without them the plans are those of whole steps.
                _logger.info("Steps are not cut into blocks: %s", error)
                known[alike] = (), ()
        return known.get(alike, ((), ()))

    def _cut_graphs(
        self, cotangents: Cotangents
    ) -> tuple[tuple[GraphCost, ...], tuple[BlockCost, ...]]:
        graphs: list[GraphCost] = []
        weighed: list[tuple[BlockCost, ...]] = []
        if not self.trial.fake:
            self.cut_graph(cotangents, Level.BLOCKS, kept=False)  # rid of first-call costs
        for level in (Level.BLOCKS, Level.BLOCKS | Level.ATTENTION):
            if level & Level.ATTENTION and self.trial.fast_path:
                break
            here, blocks = self.cut_graph(cotangents, level, kept=False)
            if level & Level.ATTENTION and not any(block.attention_bytes for block in blocks):
                break
            away = here
            if self.trial.away:
                away, _ = self.cut_graph(cotangents, level, kept=True)
            graphs += [here, replace(away, kept=True)]
            weighed.append(blocks)
        plain, *attended = weighed
        return tuple(graphs), with_attention(plain, *attended)

    def cut_graph(
        self, cotangents: Cotangents, level: Level, *, kept: bool
    ) -> tuple[GraphCost, tuple[BlockCost, ...]]:
        """Return what the step's graph costs at a level, and what its blocks weigh."""
        run, weigher = self.run, BlockWeigher(self.state.device)
        with self.trial.keeper(kept=kept) as keeper:
            cut = Cut(
                run.blocks, self.step, self.trial.surroundings, run.comparison, keeper,
                Level.ATTENTION in level, weigher,
            )  # fmt: skip
            took = self.gone_back(cotangents, cut, weigher=weigher, keeper=keeper)
        return self.graph_cost(took, level, kept, cotangents), tuple(reversed(weigher.costs))

    def attention_graph(self, cotangents: Cotangents, whole: StepCost) -> GraphCost | None:
        """Return what the whole graph costs if its rerun is given attention's outputs, if any."""
        with self.trial.keeper(kept=True) as keeper:
            cut = KeptAttention(self.step, self.run.comparison, keeper)
            with meter(self.state.device) as reading:
                self.forward(cut=cut)
                keeper.settle()
                beside = reading.now()
            if not any(outputs.calls for outputs, _ in cut.runs):
                return None
            took = self.gone_back(cotangents, cut, keeper=keeper)
        cost = self.graph_cost(took, Level.ATTENTION, False, cotangents)
        if self.trial.fake:  # what the rerun saves is taken off
            flops = took.flops + took.record_flops - (whole.forward_flops or 0)
            return replace(cost, attention_bytes=beside, backward_flops=flops)
        return replace(cost, attention_bytes=beside, backward_seconds=took.record_seconds)

    def graph_cost(
        self, took: GoneBack, level: Level, kept: bool, cotangents: Cotangents
    ) -> GraphCost:
        """Return what a graph took as a cost."""
        result = sum(g.nbytes for g in cotangents.values())
        return GraphCost(
            level=level,
            kept=kept,
            graph_bytes=max(took.kept_bytes - result, 0),
            record_bytes=took.record_bytes,
            backprop_bytes=took.further - result,
            backward_seconds=took.seconds,
            first_backprop_bytes=took.first - result,
            stored_bytes=took.stored,
            backward_flops=took.flops if self.trial.fake else None,
        )

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
            stored = keeper.stored_bytes if isinstance(keeper, Paged) else 0
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


def _bytes(tensors: list[Tensor]) -> int:
    found = {storage_id(s): s.nbytes() for tensor in tensors for s in storages(tensor)}
    return sum(found.values())


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()
