"""Carries out the forward half of a plan: runs steps, keeps nodes and graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from chainograd.engine.graph import Guard
from chainograd.engine.run import Run
from chainograd.engine.step import StepResult
from chainograd.errors import ReplayError
from chainograd.plans.plan import Action, Keep, Load, Record
from chainograd.replay.autocast import autocast_as
from chainograd.replay.buffers import BufferSnapshot
from chainograd.replay.rng import RNGState
from chainograd.replay.verify import ADVICE
from chainograd.state import State
from chainograd.torch_internals.settings import uncached_parametrizations


def run_forward(run: Run, visit: Callable[[int, State], None]) -> None:
    """Carry out the forward actions; ``visit`` is shown every state that a step gives."""
    run.storage = run.store.storage(run.x_T, lambda: run.plan.nodes)
    try:
        with (
            torch.no_grad(),  # once for all steps; those that are recorded turn it off
            autocast_as(run.context.autocast),
            uncached_parametrizations(),
            run.log.showing("forward", run.plan.num_steps),
        ):
            _run(run, visit)
        run.steps.refuse_own_backward(run.plan.num_steps - 1)
        run.storage.settle()
        _as_foreseen(run.foreseen.settle)
    except BaseException:
        run.release()
        raise
    finally:
        torch.clear_autocast_cache()  # casts that the last step made are not the caller's
    if run.first:
        _forget_unneeded(run)


def _run(run: Run, visit: Callable[[int, State], None]) -> None:
    state, run.random = run.x_T, [run.rng.state()]
    # Where the comparison is not to the bit, kept states are brought back for it.
    in_sight = run.storage.in_sight or not run.verifier.exact
    seen = {a.index for a in run.plan.forward if type(a) is Keep and in_sight}
    for action in run.plan.forward:
        i = action.index
        if isinstance(action, Keep):
            if run.inputs:
                run.nodes[i] = run.storage.put(i, state)
            continue
        began = run.log.now()
        run.log.saw(i, state)
        state = _run_first(run, action, state)
        run.log.ran("forward", i, began)
        run.random.append(run.rng.state(run.random[i]))
        run.unlisted_generators.ran(i)
        # Of steps that the plan does not run again too: a second backward pass runs all of them.
        if any(run.wanted[i + 1]) and i + 1 not in seen:
            run.verifier.saw(i + 1, state.leaves)
        visit(i + 1, state)


def _run_first(run: Run, action: Action, state: State) -> State:
    """Run a step as planned; if memory runs out, let all kept graphs go and run it without."""
    run.buffers.begin_step()
    run.begin_step()
    begin_again = _undo(run, run.random[-1])
    try:
        if isinstance(action, Record) and run.inputs and run.passes(action.index):
            return _record(run, action.index, state)
        return _advance(run, action.index, state, begin_again)
    except Exception as error:
        if not run.droppable(error, action.index, run.nodes):
            raise
    run.drop_graphs(action.index)
    begin_again()
    return _advance(run, action.index, state, begin_again)


def _undo(run: Run, rng: RNGState) -> Callable[[], None]:
    """Return what puts back what a run of a step is about to change."""
    snapshot = BufferSnapshot(run.buffers)

    def begin_again() -> None:
        run.rng.set(rng)
        snapshot.put_back()

    return begin_again


def _record(run: Run, i: int, state: State) -> State:
    recorded = run.steps.record(i, state, run.wanted[i], run.mark(i))
    recorded.guard = Guard(recorded.entering.leaves)
    run.graphs[i] = recorded
    return _noted(run, i, run.steps.outcome(recorded))


def _advance(run: Run, i: int, state: State, begin_again: Callable[[], None]) -> State:
    steps = run.steps
    if run.passes(i):
        return _noted(run, i, steps.advance(i, state, run.wanted[i], run.mark(i), begin_again))
    result = steps.unrecorded(i, state)
    return _noted(run, i, StepResult(result, [False] * len(result.leaves), set(), None, {}, {}))


def _noted(run: Run, i: int, result: StepResult) -> State:
    """Note what a step's graph told of it; return the state that it gave."""
    if run.foreseen.digests or run.foreseen.samples:
        _as_foreseen(partial(run.foreseen.same, i, result.leaving.leaves, None))
    run.wanted.append(result.wanted)
    run.specs.append(result.leaving.spec)
    run.used |= result.used
    run.verifier.graphs[i] = result.used, result.signature
    run.entered.append(result.entered)
    run.aliases.append(result.aliases)
    if i == run.first and not any(result.wanted):
        run.first = i + 1
    return result.leaving


def _as_foreseen(check: Callable[[], None]) -> None:
    """See that a step gives what it gave when a byte budget had it measured.

    Raises:
        ReplayError: If it does not.
    """
    try:
        check()
    except ReplayError as error:
        raise ReplayError(
            f"Step {error.step} gave one state when the byte budget of `plan` had it measured, and "
            f"another one in the forward pass after it. {ADVICE}"
        ) from error


def _forget_unneeded(run: Run) -> None:
    loaded = {a.index for a in run.backward_actions() if isinstance(a, Load)}
    for i in [i for i in run.nodes if i < run.first and i not in loaded]:
        del run.nodes[i]
