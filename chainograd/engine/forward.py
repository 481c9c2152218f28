"""Carries out the forward half of a plan: runs steps, keeps nodes and graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from chainograd.engine.graph import Guard
from chainograd.engine.run import Tape
from chainograd.engine.step import Outcome
from chainograd.errors import ReplayError
from chainograd.plans.plan import Action, Keep, Load, Record
from chainograd.replay.buffers import Snapshot
from chainograd.replay.context import autocast_as, uncached_parametrizations
from chainograd.replay.rng import Streams
from chainograd.replay.verify import ADVICE
from chainograd.state import State


def go_forward(tape: Tape, visit: Callable[[int, State], None]) -> None:
    """Carry out the forward actions; ``visit`` is shown every state that a step gives."""
    tape.shelf = tape.store.shelf(tape.x_T, lambda: tape.plan.nodes)
    try:
        with (
            torch.no_grad(),  # once for all steps; those that are recorded turn it off
            autocast_as(tape.surroundings.autocast),
            uncached_parametrizations(),
            tape.log.showing("forward", tape.plan.num_steps),
        ):
            _run(tape, visit)
        tape.steps.refuse_own_backward(tape.plan.num_steps - 1)
        tape.shelf.settle()
        _as_foreseen(tape.foreseen.settle)
    except BaseException:
        tape.let_go()
        raise
    finally:
        torch.clear_autocast_cache()  # casts that the last step made are not the caller's
    if tape.first:
        _forget_unneeded(tape)


def _run(tape: Tape, visit: Callable[[int, State], None]) -> None:
    state, tape.random = tape.x_T, [tape.streams.state()]
    # Where the comparison is not to the bit, kept states are brought back for it.
    in_sight = tape.shelf.in_sight or not tape.verifier.exact
    seen = {a.index for a in tape.plan.forward if type(a) is Keep and in_sight}
    for action in tape.plan.forward:
        i = action.index
        if isinstance(action, Keep):
            if tape.inputs:
                tape.nodes[i] = tape.shelf.put(i, state)
            continue
        began = tape.log.now()
        tape.log.saw(i, state)
        state = _run_first(tape, action, state)
        tape.log.ran("forward", i, began)
        tape.random.append(tape.streams.state(tape.random[i]))
        tape.unnamed.ran(i)
        # Of steps that the plan does not run again too: a second backward pass runs all of them.
        if any(tape.wanted[i + 1]) and i + 1 not in seen:
            tape.verifier.saw(i + 1, state.leaves)
        visit(i + 1, state)


def _run_first(tape: Tape, action: Action, state: State) -> State:
    """Run a step as planned; if memory runs out, let all kept graphs go and run it without."""
    tape.buffers.begin_step()
    tape.begin_step()
    begin_again = _undo(tape, tape.random[-1])
    try:
        if isinstance(action, Record) and tape.inputs and tape.passes(action.index):
            return _record(tape, action.index, state)
        return _advance(tape, action.index, state, begin_again)
    except Exception as error:
        if not tape.droppable(error, action.index, tape.nodes):
            raise
    tape.drop_graphs(action.index)
    begin_again()
    return _advance(tape, action.index, state, begin_again)


def _undo(tape: Tape, streams: Streams) -> Callable[[], None]:
    """Return what puts back what a run of a step is about to change."""
    snapshot = Snapshot(tape.buffers)

    def begin_again() -> None:
        tape.streams.set(streams)
        snapshot.put_back()

    return begin_again


def _record(tape: Tape, i: int, state: State) -> State:
    recorded = tape.steps.record(i, state, tape.wanted[i], tape.mark(i))
    recorded.guard = Guard(recorded.entering.leaves)
    tape.graphs[i] = recorded
    return _noted(tape, i, tape.steps.outcome(recorded))


def _advance(tape: Tape, i: int, state: State, begin_again: Callable[[], None]) -> State:
    steps = tape.steps
    if tape.passes(i):
        return _noted(tape, i, steps.advance(i, state, tape.wanted[i], tape.mark(i), begin_again))
    result = steps.unrecorded(i, state)
    return _noted(tape, i, Outcome(result, [False] * len(result.leaves), set(), None, {}, {}))


def _noted(tape: Tape, i: int, result: Outcome) -> State:
    """Note what a step's graph told of it; return the state that it gave."""
    if tape.foreseen.digests or tape.foreseen.samples:
        _as_foreseen(partial(tape.foreseen.same, i, result.leaving.leaves, None))
    tape.wanted.append(result.wanted)
    tape.specs.append(result.leaving.spec)
    tape.used |= result.used
    tape.verifier.graphs[i] = result.used, result.signature
    tape.entered.append(result.entered)
    tape.twins.append(result.twins)
    if i == tape.first and not any(result.wanted):
        tape.first = i + 1
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


def _forget_unneeded(tape: Tape) -> None:
    loaded = {a.index for a in tape.backward_actions() if isinstance(a, Load)}
    for i in [i for i in tape.nodes if i < tape.first and i not in loaded]:
        del tape.nodes[i]
