"""What a step costs at every level: note [Measured levels]."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
from chainograd.engine.step_result import StepResult
from chainograd.engine.trial import GoneBack, TrialRuns
from chainograd.engine.weigh_blocks import BlockWeigher
from chainograd.errors import ChainError
from chainograd.metering import meter, storages
from chainograd.plans.plan import BlockCost, GraphCost, Level, StepCost
from chainograd.state import Cotangents
from chainograd.tensors.parts import tensor_bytes
from chainograd.torch_internals.tensors import storage_id

TOO_LARGE = 4  # times the budget: graphs of blocks that need not be tried together

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepWeighing:
    """Works out what one step costs.

    Attributes:
        runs: Runs the step.
    """

    runs: TrialRuns

    def cost(self) -> StepCost:
        """Return the cost of the step: run it, record it, and go back through it."""
        state, fake = self.runs.state, self.runs.trial.fake
        seconds, advance_bytes, flops, attends, after = self.runs.advanced()
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
            gradient_bytes=sum(map(tensor_bytes, self.runs.run.shared.inside)),
            forward_seconds=1.0 if fake else seconds,
            stored_bytes=self.runs.run.options.store.stored_bytes(state),
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

    def whole(self, cotangents: Cotangents, cost: StepCost) -> GoneBack | None:
        """Return what the step's whole graph takes; None if there is no room for it."""
        limit = self.runs.trial.limit
        # Blocks share some of what they save, so a whole graph may be smaller than they are
        # together. If it does not fit into the device either, that is seen below.
        if cost.graphs and limit is not None and bytes_of_blocks(cost) > TOO_LARGE * limit:
            return None
        try:
            return self.runs.gone_back(cotangents, None)
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
        known = self.runs.trial.attended
        if alike not in known:
            graph = self.attention_graph(cotangents, cost)
            known[alike] = () if graph is None else (graph,), seconds
        graphs, before = known[alike]
        if self.runs.trial.fake:
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
        sizes = tuple(leaf.shape for leaf in self.runs.state.tensors)
        alike = (sizes, advance_bytes, nodes, len(after.used), tuple(cotangents))
        known = self.runs.trial.graphs
        if self.runs.run.blocks.modules and alike not in known:
            try:
                known[alike] = self._cut_graphs(cotangents)
            except NeedsWholeError:
                known[alike] = (), ()
            except ChainError as error:
                if self.runs.run.blocks.named:
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
        if not self.runs.trial.fake:
            self.cut_graph(cotangents, Level.BLOCKS, kept=False)  # rid of first-call costs
        for level in (Level.BLOCKS, Level.BLOCKS | Level.ATTENTION):
            if level & Level.ATTENTION and self.runs.trial.fast_path:
                break
            here, blocks = self.cut_graph(cotangents, level, kept=False)
            if level & Level.ATTENTION and not any(block.attention_bytes for block in blocks):
                break
            away = here
            if self.runs.trial.away:
                away, _ = self.cut_graph(cotangents, level, kept=True)
            graphs += [here, replace(away, kept=True)]
            weighed.append(blocks)
        plain, *attended = weighed
        return tuple(graphs), with_attention(plain, *attended)

    def cut_graph(
        self, cotangents: Cotangents, level: Level, *, kept: bool
    ) -> tuple[GraphCost, tuple[BlockCost, ...]]:
        """Return what the step's graph costs at a level, and what its blocks weigh."""
        run, weigher = self.runs.run, BlockWeigher(self.runs.state.device)
        with self.runs.trial.keeper(kept=kept) as keeper:
            cut = Cut(
                run.blocks, self.runs.step, self.runs.trial.surroundings, run.comparison, keeper,
                Level.ATTENTION in level, weigher,
            )  # fmt: skip
            took = self.runs.gone_back(cotangents, cut, weigher=weigher, keeper=keeper)
        return self.graph_cost(took, level, kept, cotangents), tuple(reversed(weigher.costs))

    def attention_graph(self, cotangents: Cotangents, whole: StepCost) -> GraphCost | None:
        """Return what the whole graph costs if its rerun is given attention's outputs, if any."""
        with self.runs.trial.keeper(kept=True) as keeper:
            cut = KeptAttention(self.runs.step, self.runs.run.comparison, keeper)
            with meter(self.runs.state.device) as reading:
                self.runs.forward(cut=cut)
                keeper.settle()
                beside = reading.now()
            if not any(outputs.calls for outputs, _ in cut.runs):
                return None
            took = self.runs.gone_back(cotangents, cut, keeper=keeper)
        cost = self.graph_cost(took, Level.ATTENTION, False, cotangents)
        if self.runs.trial.fake:  # what the rerun saves is taken off
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
            backward_flops=took.flops if self.runs.trial.fake else None,
        )


def _bytes(tensors: list[Tensor]) -> int:
    found = {storage_id(s): s.nbytes() for tensor in tensors for s in storages(tensor)}
    return sum(found.values())
