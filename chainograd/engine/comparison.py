"""The one place that compares a rerun with the first run: states, graphs, generators, tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import NamedTuple

import torch

from chainograd.captured.generators import UnlistedGenerators
from chainograd.engine.block_run import Block, BlockRun
from chainograd.engine.changes import ChangeDetector
from chainograd.engine.shared import SharedTensors
from chainograd.engine.step_result import StepResult
from chainograd.errors import ReplayError
from chainograd.replay.comparison import refused
from chainograd.replay.signature import Signature
from chainograd.replay.verify import ADVICE, Verifier
from chainograd.storage.call_storage import StoredState
from chainograd.storage.device import DeviceState


class SeenBlock(NamedTuple):
    """What is remembered of a block's first run.

    Attributes:
        verifier: Knows what it returned.
        uses: How often its graph uses each leaf.
        signature: What its graph is like.
    """

    verifier: Verifier
    uses: dict[Hashable, int]
    signature: Signature | None


class Comparison:
    """Compares what steps return when they run again with what they returned first.

    Args:
        shared: What the steps share, before the first step runs.
        verifier: Knows what states were like.
        measured: Knows what states were like when costs were measured, if they were.
        unlisted_generators: Generators that the chain was not told of.

    Attributes:
        changes: Notices what changed since the forward pass.
        in_sight: Indices of states that are kept where a look at them costs nothing.
    """

    def __init__(
        self,
        shared: SharedTensors,
        verifier: Verifier,
        measured: Verifier,
        unlisted_generators: UnlistedGenerators,
    ) -> None:
        self.shared, self.verifier, self.measured = shared, verifier, measured
        self.unlisted_generators = unlisted_generators
        self.changes = ChangeDetector(shared)
        self.in_sight: set[int] = set()

    def saw(self, i: int, result: StepResult) -> None:
        """Remember what step i returned in its first run.

        Raises:
            ReplayError: If it returned something else when it was measured.
        """
        leaves = result.leaving.leaves
        if self.measured.digests or self.measured.samples:
            _as_measured(partial(self.measured.same, i, leaves, None))
        self.verifier.graphs[i] = result.used, result.signature
        # Of steps that the plan does not run again too: a second backward pass runs all of them.
        if any(result.wanted) and i + 1 not in self.in_sight:
            self.verifier.saw(i + 1, leaves)

    def dropped(self, i: int, node: StoredState) -> None:
        """Remember what a state was like that is not kept any more, if it is at hand."""
        if isinstance(node, DeviceState) or not self.verifier.exact:
            self.verifier.saw(i, node.load().leaves)

    def same(self, i: int, result: StepResult, node: StoredState | None) -> None:
        """Check that step i returned what it returned first, and used what it used then.

        Args:
            i: The step.
            result: What it returns now.
            node: The state after it, if that is kept.

        Raises:
            ReplayError: If it did not; on an accelerator `settle` raises it.
            ChangedTensorError: If that is because a tensor has changed.
        """
        verifier, changes = self.verifier, self.changes
        self._refuse_changes(i, result.used)
        # To bring a state back from elsewhere takes longer than to compare its digest.
        far = verifier.exact and not isinstance(node, DeviceState)
        first = None if node is None or far else lambda: node.load().leaves
        try:
            verifier.same(i, result.leaving.leaves, first)
            verifier.same_graph(i, result.used, result.signature)
            if verifier.verify != "off":
                self.unlisted_generators.ran_again(i)
        except ReplayError:
            changes.refuse_changes(i, lambda t: True)
            raise

    def _refuse_changes(self, i: int, used: set[int]) -> None:
        """Check that no tensor has changed that a graph of step i uses, by the tensors' places."""
        if self.changes.changed:
            # A changed tensor that needs a gradient matters if the graph leads to it. A change of
            # any other tensor shows in the values, if they are compared bit for bit.
            inside, certain = self.shared.ids(used), self.verifier.exact
            self.changes.refuse_changes(
                i, lambda t: id(t) in inside or not (certain or t.requires_grad)
            )

    def of_values(self) -> Verifier:
        """Return what compares values inside steps."""
        return Verifier(self.verifier.verify, None, self.verifier.coarsest)

    def adopt(self, i: int, verifier: Verifier, words: str) -> None:
        """Let `settle` read the open verdicts on values inside step i.

        Args:
            i: The step.
            verifier: Has the verdicts.
            words: Say what differs, for the error.
        """
        self.verifier.open += [(differs, i, lambda: words) for differs, *_ in verifier.open]
        verifier.open.clear()

    def saw_block(self, run: BlockRun) -> SeenBlock:
        """Remember what a block returned in its first run."""
        verifier = self.of_values()
        with torch.no_grad():
            verifier.saw(1, run.leaving.detached().leaves)
        return SeenBlock(verifier, run.counts, run.signature)

    def same_block(self, block: Block, run: BlockRun, first: SeenBlock) -> None:
        """Check that a block returned what it returned first, and used what it used then.

        Raises:
            ReplayError: If it did not; on an accelerator `settle` raises it.
            ChangedTensorError: If that is because a tensor has changed.
        """
        places = self.shared.places
        used = {places[id(use[0])] for use in run.uses if id(use[0]) in places}
        self._refuse_changes(block.step, used)
        words = f"ran its block `{block.name}` again, which returned something else than at first"
        error = refused(block.step, words)
        counts = [len(uses) for uses in run.in_order(first.uses)]
        same_uses = counts == [*first.uses.values()] and len(run.counts) == len(counts)
        compared = self.verifier.verify != "off"
        if not same_uses or (compared and run.signature != first.signature):
            raise refused(block.step, f"ran its block `{block.name}` again with another graph")
        try:
            first.verifier.same(0, run.leaving.detached().leaves, None)
        except ReplayError as cause:
            self.changes.refuse_changes(block.step, lambda t: True)
            raise error from cause
        self.adopt(block.step, first.verifier, words)

    def settle(self, i: int) -> None:
        """Ask whether all steps returned what they returned first, where that is open.

        Args:
            i: The first step that a gradient needs, for errors.

        Raises:
            ReplayError: If they did not.
        """
        try:
            self.verifier.settle()
        except ReplayError:
            self.changes.refuse_changes(i, lambda t: True)
            raise

    def settle_measured(self) -> None:
        """Ask whether all steps returned what they returned when they were measured.

        Raises:
            ReplayError: If they did not.
        """
        _as_measured(self.measured.settle)

    def forget(self) -> None:
        """Forget what states were like."""
        self.verifier.digests.clear()
        self.verifier.samples.clear()


def _as_measured(check: Callable[[], None]) -> None:
    """Name the byte budget in an error of a comparison with a measured state."""
    try:
        check()
    except ReplayError as error:
        raise ReplayError(
            f"Step {error.step} returned one state when the byte budget of `plan` had it measured, "
            f"and another one in the forward pass after it. {ADVICE}"
        ) from error
