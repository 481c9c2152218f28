"""Steps that run with their graph cut into blocks: note [Blocks]."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from chainograd.blocks.attention import keeping
from chainograd.blocks.calls import intercepted
from chainograd.blocks.find import FoundBlocks
from chainograd.engine.abstract_step import GraphOptions
from chainograd.engine.block_call import BlockCall, modes_of
from chainograd.engine.block_node import stand_for
from chainograd.engine.block_run import (
    Block,
    BlockRun,
    changed_view,
    entered,
    run_block,
    viewed,
)
from chainograd.engine.comparison import Comparison
from chainograd.engine.first_run import Asking, Guard, NeedsWholeError, nothing_saved
from chainograd.engine.graph import Mark
from chainograd.engine.running import cuts_now, cutting
from chainograd.engine.surroundings import Surroundings
from chainograd.engine.weigh_blocks import BlockWeigher
from chainograd.replay.context import StepContext
from chainograd.replay.rng import RNGState
from chainograd.state import State, wants_gradient
from chainograd.storage.kept_tensors import Keeper
from chainograd.torch_internals.tensors import version_or_zero


@dataclass(frozen=True, slots=True)
class Cut:
    """How the runs of one step are cut into blocks.

    Attributes:
        blocks: The blocks.
        step: The step's index.
        surroundings: What steps see besides their arguments.
        comparison: Compares reruns with first runs.
        keeper: Keeps what blocks need to run again.
        attention: Whether attention's outputs are kept too.
        weigher: Weighs the blocks, if they are measured.
    """

    blocks: FoundBlocks
    step: int
    surroundings: Surroundings
    comparison: Comparison
    keeper: Keeper
    attention: bool
    weigher: BlockWeigher | None = None

    def saving(self, options: GraphOptions) -> AbstractContextManager[object]:
        """Return the context that says what a graph saves: see `AbstractCut`."""
        # Operations between blocks are few, and would each pay for being watched.
        return self.keeper.saving()

    def cutting(self, mark: Mark, options: GraphOptions, *, discarded: bool) -> Cutter:
        """Return the context in which the step runs: see `AbstractCut`."""
        return Cutter(self, mark, options, discarded=discarded)


class Cutter:
    """Cuts the graph of one run of a step into blocks, while it is entered.

    Args:
        cut: How.
        mark: For the nodes of the blocks' graphs.
        options: How graphs are made.
        discarded: Whether the step's graph is discarded, so that no block will run again.
    """

    def __init__(self, cut: Cut, mark: Mark, options: GraphOptions, *, discarded: bool) -> None:
        self.cut, self.mark, self.options, self.discarded = cut, mark, options, discarded
        self.inside = False  # a block: blocks in it are parts of it
        self.last: BlockCall | None = None
        self.viewed: list[tuple[Block, Tensor, int]] = []
        self.asking = Asking()  # for a gradient through blocks
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        self.stack.enter_context(cutting(self))
        self.stack.enter_context(intercepted(self.cut.blocks.modules, self))
        return self

    def __exit__(self, *error: Any) -> None:
        self.asking.running = False
        self.stack.close()
        self._note_draws()
        if self.asking.asked and (error[1] is None or isinstance(error[1], Exception)):
            raise NeedsWholeError from error[1]
        if error[1] is not None:
            return
        for block, tensor, version in self.viewed:
            if version_or_zero(tensor) != version:
                raise changed_view(block)

    def cuts(self) -> bool:
        """Return whether calls in this thread are this cutter's."""
        return cuts_now(self)

    def call(self, at: int, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a block, and return what it returns with one node as its graph."""
        if self.inside or self.cut.step in self.options.uncut or not torch.is_grad_enabled():
            return original(*args, **kwargs)
        block = Block(self.cut.blocks.names[at], self.cut.step, original)
        outside = State.of((args, kwargs))
        call = None if self.discarded else self._begun(block, at)
        run = self._first_run(block, outside, call)
        if call is not None:
            call.keep(run, outside, self.cut.keeper)
        after = stand_for(run, outside, call, self.asking)
        self.viewed += [(block, t, version_or_zero(t)) for t in viewed(run)]
        begun = [weakref.ref(leaf) for leaf in run.entering.leaves if wants_gradient(leaf)]
        del run
        # A leaf that outlives its graph is part of something that the block has kept.
        Guard((leaf for each in begun if (leaf := each()) is not None), str(block))
        return after.tree()

    def _begun(self, block: Block, at: int) -> BlockCall:
        """Note what a block sees before it runs."""
        surroundings, comparison = self.cut.surroundings, self.cut.comparison
        start = self._note_draws() or surroundings.rng.state(None)
        types = {each.device_type for each in surroundings.context.autocast}
        context = StepContext.now(types, list(modes_of(self.cut.blocks.modules[at])))
        call = BlockCall(
            block,
            self.mark,
            self.options,
            surroundings,
            comparison,
            start,
            context,
            weigher=self.cut.weigher,
        )
        self.last = call
        return call

    def _first_run(self, block: Block, outside: State, call: BlockCall | None) -> BlockRun:
        """Run a block with a graph that saves nothing."""
        entering = entered(outside)
        self.inside = True
        try:
            with ExitStack() as stack:
                if not self.options.saves:
                    stack.enter_context(nothing_saved())
                if call is not None and self.cut.attention:
                    call.attention = stack.enter_context(keeping(self.cut.comparison.of_values()))
                return run_block(block, entering, self.mark, signed=self.options.signed)
        finally:
            self.inside = False

    def _note_draws(self) -> RNGState | None:
        """Note whether the last block, or what came after it, drew random numbers.

        Returns:
            Where the random streams stand now; None before the first block.
        """
        if self.last is None:
            return None
        now = self.cut.surroundings.rng.state(self.last.start)
        self.last.drew = now is not self.last.start
        return now
