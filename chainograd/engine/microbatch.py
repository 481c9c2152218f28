"""Steps that run over slices of the batch, with the graph of one slice at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from chainograd.engine.abstract_step import (
    AbstractCut,
    AbstractStep,
    GraphOptions,
    Recording,
    ReplayHooks,
)
from chainograd.engine.accumulate import GradAccumulator, Uses
from chainograd.engine.first_run import NeedsSavedError
from chainograd.engine.graph import Mark
from chainograd.engine.shared import SharedTensors
from chainograd.engine.slices import Slice, joined, slices_of
from chainograd.engine.step import Call, Step
from chainograd.engine.step_graph import AbstractStepGraph
from chainograd.engine.step_result import StepResult
from chainograd.engine.unknown_leaves import UnknownLeaf, refuse_unknown_leaves
from chainograd.engine.vjp import Vjp
from chainograd.replay import signature
from chainograd.state import Cotangents, State

# Note [Slices]
# 1. The batch size N is the first dimension of the first floating tensor of x_T that has one.
#    Tensors of the state and of the arguments whose first dimension is N are cut; every slice gets
#    all others whole. What is whole in a state must come out of every slice the same.
# 2. A step's slices run in order, in the first run and in each rerun, so they draw the same noise
#    again. It is drawn slice by slice: another sample than the whole batch would get, as good.
# 3. Recording a step only remembers it: its slices are recorded when the cotangent is there, each
#    freed before the next. So no graph outlives its step, and every step is run twice.


class SlicedStep:
    """Steps that run slice by slice, each slice as a step of its own.

    Args:
        whole: The steps, on the whole batch.
        batch: N, the batch size.
        size: Samples in a slice.

    Attributes:
        slices: The slices, in order.
        steps: The steps on each of them.
    """

    def __init__(self, whole: Step, batch: int, size: int) -> None:
        self.whole, self.batch, self.size = whole, batch, size
        self.function, self.num_steps = whole.function, whole.num_steps
        self.shared: SharedTensors = whole.shared
        self.options: GraphOptions = whole.options
        self.slices = slices_of(batch, size)
        self.steps = [replace(whole, call=_cutting(whole.call, cut)) for cut in self.slices]

    def __call__(self, index: int, state: State) -> State:
        """Return the state of the whole batch, in the grad mode that is in force."""
        return self._joined(index, state, [step(index, state) for step in self.steps])

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
        """Run a step without a graph, or with graphs that are discarded: see `AbstractStep`.

        The graph of each slice is freed before the next one is made.
        """
        assert record is not Recording.KEEP, "note [Slices], 3"
        entering = state if wanted is None or record is Recording.OFF else state.entering(wanted)
        parts: list[StepResult] = []
        try:
            for step in self.steps:
                parts.append(step.run(index, entering, None, mark, record=record, cut=cut))
        except NeedsSavedError:
            if rewind is None:
                raise
        if len(parts) < len(self.steps):  # not in `except`, which holds what the failed run left
            assert rewind is not None
            rewind()
            return self.run(index, state, wanted, mark, record=record, rewind=rewind, cut=cut)
        return self.of_parts(index, state, parts)

    def rerun(
        self, index: int, state: State, wanted: list[bool], hooks: ReplayHooks
    ) -> AbstractStepGraph:
        """Remember a step that is to be recorded slice by slice."""
        return SlicedGraph(state.entering(wanted), {}, [], index, self, hooks)

    def replaced(self, others: dict[int, Tensor]) -> AbstractStep:
        """Return the same steps, with other tensors in some places of what they share."""
        return SlicedStep(self.whole.replaced(others), self.batch, self.size)

    def of_parts(self, index: int, entering: State, parts: Sequence[StepResult]) -> StepResult:
        """Return the result of the whole batch from its slices' results."""
        return StepResult(
            self._joined(index, entering, [part.leaving for part in parts]),
            [any(wanted) for wanted in zip(*(part.wanted for part in parts), strict=True)],
            set[int]().union(*(part.used for part in parts)),
            signature.joined(part.signature for part in parts),
            # Each of their gradients is whole: the slices' are added up first.
            dict.fromkeys(set[int]().union(*(part.entered for part in parts)), 1),
            dict(set(parts[0].aliases.items()).intersection(*(p.aliases.items() for p in parts))),
        )

    def _joined(self, index: int, entering: State, parts: Sequence[State]) -> State:
        return joined(index, entering, parts, self.slices)


def _cutting(call: Call, cut: Slice) -> Call:
    """Return a call of the user's step on one slice."""

    def called(index: int, state: State, arguments: State) -> State:
        return call(index, cut.of(state), cut.of(arguments))

    return called


@dataclass(slots=True, eq=False)
class SlicedGraph:
    """A step that is recorded slice by slice, when its cotangents are there.

    Attributes:
        entering: Detached leaves that the graph of every slice begins with.
        entered: Not known yet.
        unknown_leaves: Likewise.
        index: The step's index.
        step: The steps.
        hooks: What goes with running the step again.
    """

    entering: State
    entered: Uses
    unknown_leaves: list[UnknownLeaf]
    index: int
    step: SlicedStep
    hooks: ReplayHooks

    def send_back(self, after: Cotangents, accumulator: GradAccumulator, vjp: Vjp) -> Cotangents:
        """Record each slice of the step and send its share of the cotangents back through it."""
        before, parts = {}, []
        for cut, step in zip(self.step.slices, self.step.steps, strict=True):
            with self.hooks.around:
                hooks = self.hooks
                result = step.run(self.index, self.entering, None, hooks.mark, cut=hooks.cut)
            graph = result.graph
            assert graph is not None
            share = cut.share(after, self.entering, graph.leaving)
            accumulator.begin()  # each is added once: without kept graphs (3) nothing is done again
            # What the slices so far have summed up goes along: note [Sums in order].
            before = vjp(graph, share, before, accumulator)
            unknown_leaves, result.graph = graph.unknown_leaves, None
            parts.append(result)
            del graph
            refuse_unknown_leaves(unknown_leaves)
        self.hooks.check(self.step.of_parts(self.index, self.entering, parts))
        return before
