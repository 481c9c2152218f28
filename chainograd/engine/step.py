"""One way to run a step: `Step.run`, with a graph that is kept, that is discarded, or without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chainograd.engine.abstract_step import AbstractCut, GraphOptions, Recording, ReplayHooks
from chainograd.engine.first_run import NeedsSavedError, NeedsWholeError, nothing_saved
from chainograd.engine.graph import Mark
from chainograd.engine.running import cutting
from chainograd.engine.shared import SharedTensors
from chainograd.engine.step_call import StepCall
from chainograd.engine.step_graph import AbstractStepGraph
from chainograd.engine.step_result import StepResult, trace
from chainograd.state import State, differentiable, wants_gradient
from chainograd.torch_internals.autograd import set_grad_enabled

Call = Callable[[int, State, State], State]  # (index, state, arguments) -> state


@dataclass(slots=True, eq=False)
class Step:
    """The steps of a chain, run on the whole batch (or on one slice of it, if the call cuts).

    Attributes:
        function: The user's step.
        num_steps: M.
        shared: What the steps share.
        options: How their graphs are made.
        call: Calls the user's step on a state and arguments.
    """

    function: Callable[..., Any]
    num_steps: int
    shared: SharedTensors
    options: GraphOptions
    call: Call

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        num_steps: int,
        shared: SharedTensors,
        options: GraphOptions,
    ) -> Step:
        """Return steps on the whole batch."""
        return cls(function, num_steps, shared, options, StepCall(function, num_steps, shared))

    def __call__(self, index: int, state: State) -> State:
        """Return what the user's step returns, in the grad mode that is in force."""
        return self.call(index, state, self.shared.inner_arguments)

    def run(
        self,
        index: int,
        state: State,
        wanted: list[bool] | None,
        mark: Mark,
        *,
        record: Recording = Recording.KEEP,
        rewind: Callable[[], None] | None = None,
        cut: AbstractCut | None = None,
    ) -> StepResult:
        """Run a step between leaves of its own: see `AbstractStep`."""
        if record is Recording.OFF or (
            self.shared.sharded and _fsdp_would_wait(state, wanted, record)
        ):
            return self._without_graph(index, state, record)
        entering = state if wanted is None else state.entering(wanted)
        graphs, leaving = torch.is_grad_enabled(), None
        set_grad_enabled(True)
        try:
            with self._saving(record, cut), self._cutting(record, mark, cut):
                leaving = self.call(index, entering, self.shared.inner_arguments)
        except NeedsSavedError as error:
            self.options.saves = True
            if isinstance(error, NeedsWholeError):
                self.options.uncut.add(index)
            if rewind is None:
                raise
        finally:
            set_grad_enabled(graphs)
        if leaving is None:  # outside of `except`, which holds what the failed run left
            assert rewind is not None
            rewind()
            return self.run(index, state, wanted, mark, record=record, rewind=rewind, cut=cut)
        result = trace(index, entering, leaving, mark, self.shared, signed=self.options.signed)
        if record is Recording.KEEP:
            return result
        leftovers = result.discard()
        del entering, leaving
        leftovers.refuse()
        return result

    def rerun(
        self, index: int, state: State, wanted: list[bool], hooks: ReplayHooks
    ) -> AbstractStepGraph:
        """Return the graph of a step that runs again."""
        with hooks.around:
            result = self.run(index, state, wanted, hooks.mark, cut=hooks.cut)
        hooks.check(result)
        assert result.graph is not None
        return result.graph

    def replaced(self, others: dict[int, Tensor]) -> Step:
        """Return the same steps, with other tensors in some places of what they share."""
        shared = self.shared.replaced(others)
        return Step.of(self.function, self.num_steps, shared, self.options)

    def _saving(self, record: Recording, cut: AbstractCut | None) -> AbstractContextManager[object]:
        """Return the context that says what a graph saves."""
        if record is Recording.DISCARD and not self.options.saves:
            return nothing_saved()
        return self.options.layers() if cut is None else cut.saving(self.options)

    def _cutting(
        self, record: Recording, mark: Mark, cut: AbstractCut | None
    ) -> AbstractContextManager[object]:
        """Return the context that cuts a graph into blocks; a whole step is not cut at all."""
        if cut is None:
            return cutting(None)
        return cut.cutting(mark, self.options, discarded=record is Recording.DISCARD)

    def _without_graph(self, index: int, state: State, record: Recording) -> StepResult:
        with torch.no_grad():
            leaving = self(index, state).detached()
        if record is Recording.OFF:
            return StepResult(leaving, [False] * len(leaving.leaves), set(), None, {}, {})
        # There is no graph to tell, so all that could be used is taken to be used.
        wanted = [differentiable(leaf) for leaf in leaving.leaves]
        places, entered = range(len(self.shared.inside)), dict.fromkeys(range(len(state.leaves)), 1)
        return StepResult(leaving, wanted, set(places), None, entered, {})


def _fsdp_would_wait(state: State, wanted: list[bool] | None, record: Recording) -> bool:
    """Return whether FSDP2 would wait for gradients of a graph that is discarded."""
    needed = map(wants_gradient, state.leaves) if wanted is None else wanted
    return record is Recording.DISCARD and any(needed)
