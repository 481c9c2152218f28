"""Steps that run again in a backward pass, from the states that are kept."""

from __future__ import annotations

from functools import partial

from chainograd.engine.abstract_step import Recording, ReplayHooks
from chainograd.engine.run import Run
from chainograd.engine.step_graph import AbstractStepGraph
from chainograd.state import State
from chainograd.storage.call_storage import StoredState


class Reruns:
    """Runs steps again, and compares each result with the first run's.

    Args:
        run: What the forward pass left.
        nodes: States that are there now, by the index of the step they enter.
    """

    def __init__(self, run: Run, nodes: dict[int, StoredState]) -> None:
        self.run, self.nodes = run, nodes

    def advance(self, i: int, state: State) -> State:
        """Run a step again and discard its graph at once."""
        run, began = self.run, self.run.log.now()
        record = Recording.DISCARD if run.options.passes(i) else Recording.OFF
        around = run.surroundings.of_rerun(i)
        wanted, mark, cut = run.first_pass.wanted[i], run.mark(i), run.cut(i, kept=False)
        with around:
            result = run.step.run(
                i, state, wanted, mark, record=record, rewind=around.rewind, cut=cut
            )
        run.comparison.same(i, result, self.nodes.get(i + 1))
        run.log.ran("rerun", i, began)
        return result.leaving

    def record(self, i: int, state: State) -> AbstractStepGraph:
        """Run a step again with its graph, if need be after the kept graphs have made room."""
        began, graph = self.run.log.now(), None
        try:
            graph = self.recorded(i, state)
        except Exception as error:
            if not self.recoverable(i, error):
                raise
        if graph is None:  # outside of `except`, which holds what the failed run left
            self.run.memory.drop_graphs(i)
            graph = self.recorded(i, state)
        self.run.log.ran("rerun", i, began)
        return graph

    def recorded(self, i: int, state: State) -> AbstractStepGraph:
        """Run a step again with its graph."""
        run = self.run
        node = self.nodes.get(i + 1)  # which may be dropped before it is asked for
        check = partial(run.comparison.same, i, node=node)
        around, cut = run.surroundings.of_rerun(i), run.cut(i, kept=False)
        hooks = ReplayHooks(around, check, run.mark(i), cut)
        return run.step.rerun(i, state, run.first_pass.wanted[i], hooks)

    def recoverable(self, i: int, error: Exception) -> bool:
        """Return whether what step i failed in can be done again without the kept graphs."""
        run = self.run
        return not run.shared.trains_shards and run.memory.can_drop_graphs(error, i, self.nodes)

    def restored(self, i: int) -> AbstractStepGraph:
        """Record step i again from the nearest node before it."""
        start = max(j for j in self.nodes if j <= i)
        state = self.nodes[start].load()
        for j in range(start, i):
            state = self.advance(j, state)
        return self.record(i, state)
