"""Carries out the forward half of a plan: runs steps, keeps nodes and graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from chainograd.engine.abstract_step import Recording
from chainograd.engine.first_run import Guard
from chainograd.engine.run import Run
from chainograd.engine.step_result import StepResult
from chainograd.plans.plan import Action, Advance, Keep, Load, Record
from chainograd.replay.autocast import autocast_as
from chainograd.state import State
from chainograd.torch_internals.settings import uncached_parametrizations


def run_forward(run: Run, visit: Callable[[int, State], None] | None = None) -> State:
    """Carry out the forward actions of a run's plan.

    Args:
        run: The run, before its first step.
        visit: Called with the index and the state after every step.

    Returns:
        The last state.
    """
    state = run.x_T
    with _forward_pass(run):
        for action in run.plan.forward:
            match action:
                case Advance(i) | Record(i):
                    state = _run_first(run, action, state)
                    if visit is not None:
                        visit(i + 1, state)
                case Keep(i) if run.inputs.tensors:
                    run.memory.keep(i, state)
    return state


@contextmanager
def _forward_pass(run: Run) -> Iterator[None]:
    """Set up what all first runs happen in; free everything if a step fails."""
    storage = run.options.store.storage(run.x_T, lambda: run.plan.nodes)
    run.memory.storage = storage
    if run.plan.is_cut:
        run.memory.keeper = run.options.store.keeper(storage, run.x_T.device, run.lasting_tensors())
    # Where the comparison is not to the bit, kept states are brought back for it.
    if storage.in_sight or not run.comparison.verifier.exact:
        run.comparison.in_sight = {a.index for a in run.plan.forward if type(a) is Keep}
    try:
        run.surroundings.begin()
        with (
            torch.no_grad(),  # once for all steps; those that are recorded turn it off
            autocast_as(run.surroundings.context.autocast),
            uncached_parametrizations(),
            run.log.showing("forward", run.plan.num_steps),
        ):
            yield
        run.comparison.changes.refuse_own_backward(run.plan.num_steps - 1)
        storage.settle()
        run.comparison.settle_measured()
    except BaseException:
        run.release()
        raise
    finally:
        torch.clear_autocast_cache()  # casts that the last step made are not the caller's
    if run.first_pass.first:
        _forget_unneeded(run)


def _run_first(run: Run, action: Action, state: State) -> State:
    """Run a step as planned; if memory runs out, drop all kept graphs and run it without one."""
    i, began, result = action.index, run.log.now(), None
    run.log.saw(i, state)
    undo, record = run.surroundings.begin_step(), _planned(run, action)
    wanted, mark = run.first_pass.wanted[i], run.mark(i)
    cut = run.cut(i, kept=record is Recording.KEEP)

    def rewind() -> None:
        undo()
        if i in run.memory.attention:
            run.memory.attention[i].clear()

    try:
        result = run.step.run(i, state, wanted, mark, record=record, rewind=rewind, cut=cut)
    except Exception as error:
        if not run.memory.can_drop_graphs(error, i, run.memory.nodes):
            raise
    if result is None:  # outside of `except`, which holds what the failed run left
        run.memory.drop_graphs(i)
        rewind()
        cut = run.cut(i, kept=False)
        record = Recording.DISCARD if run.options.passes(i) else Recording.OFF
        result = run.step.run(i, state, wanted, mark, record=record, rewind=rewind, cut=cut)
    _note(run, i, result)
    run.log.ran("forward", i, began)
    run.surroundings.end_step(i)
    return result.leaving


def _planned(run: Run, action: Action) -> Recording:
    """Return what becomes of the graph of a step."""
    if not run.options.passes(action.index):
        return Recording.OFF
    keep = type(action) is Record and run.inputs.tensors
    return Recording.KEEP if keep else Recording.DISCARD


def _note(run: Run, i: int, result: StepResult) -> None:
    """Note what the first run of step i has shown."""
    run.comparison.saw(i, result)
    run.first_pass.note(i, result)
    if result.graph is not None:
        result.graph.guard = Guard(result.graph.entering.leaves)
        run.memory.graphs[i] = result.graph


def _forget_unneeded(run: Run) -> None:
    """Forget the nodes that no backward pass loads: nothing before them needs a gradient."""
    loaded = {a.index for a in run.backward_actions() if isinstance(a, Load)}
    first, nodes = run.first_pass.first, run.memory.nodes
    for i in [i for i in nodes if i < first and i not in loaded]:
        del nodes[i]
