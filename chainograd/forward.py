"""Carries out the forward half of a plan: runs steps, keeps nodes and graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from chainograd.plan import RUNS, Action, Advance, Keep, Load, Record
from chainograd.states import State, wants_gradient
from chainograd.steps import looking
from chainograd.surroundings import Statistics, autocast_as, uncached_parametrizations
from chainograd.tape import Tape


def go_forward(tape: Tape, visit: Callable[[int, State], None]) -> None:
    """Carry out the forward actions; ``visit`` is shown every state that a step gives."""
    tape.shelf = tape.store.shelf(tape.x_T, lambda: tape.plan.nodes)
    try:
        with (
            torch.no_grad(),  # once for all steps; those that are recorded turn it off
            autocast_as(tape.autocast),
            uncached_parametrizations(),
            tape.log.showing("forward", tape.plan.num_steps),
        ):
            _run(tape, visit)
        tape.shelf.settle()
    except BaseException:
        tape.let_go()
        raise
    if tape.first:
        _forget_unneeded(tape)


def _run(tape: Tape, visit: Callable[[int, State], None]) -> None:
    state, tape.random = tape.x_T, [tape.streams.state()]
    # Where the comparison is not to the bit, kept states are brought back for it.
    in_sight = tape.shelf.in_sight or not tape.exact
    seen = {a.index for a in tape.plan.forward if type(a) is Keep and in_sight}
    again = {a.index for a in tape.plan.backward if type(a) in RUNS}
    for action in tape.plan.forward:
        i = action.index
        if isinstance(action, Keep):
            tape.nodes[i] = tape.shelf.put(i, state)
            continue
        began = tape.log.now()
        tape.log.saw(i, state)
        state = _run_first(tape, action, state)
        tape.log.ran("forward", i, began)
        tape.random.append(tape.streams.state(tape.random[i]))
        if i in again and i + 1 not in seen:
            tape.note(i + 1, state)
        visit(i + 1, state)


def _run_first(tape: Tape, action: Action, state: State) -> State:
    """Run a step as planned; if memory runs out, let all kept graphs go and run it without."""
    if not tape.graphs:
        return _run_as_planned(tape, action, state)
    statistics = Statistics(tape.modes)
    try:
        return _run_as_planned(tape, action, state)
    except Exception as error:
        if not tape.droppable(error, action.index, tape.nodes):
            raise
    tape.drop_graphs(action.index)
    tape.streams.set(tape.random[-1])
    statistics.put_back()
    return _run_as_planned(tape, Advance(action.index), state)


def _run_as_planned(tape: Tape, action: Action, state: State) -> State:
    i = action.index
    if isinstance(action, Record):
        wanted = tape.wanted(i, state)
        recorded = tape.steps.record(i, state, wanted, looking(tape.look, i))
        tape.graphs[i] = recorded
        state = recorded.leaving.detached()
        if _leads_nowhere(tape, i) and not any(map(wants_gradient, recorded.leaving.leaves)):
            tape.first = i + 1
        return state
    if not tape.passes(i):
        tape.first += i == tape.first
        return tape.steps.advance(i, state)
    nowhere = _leads_nowhere(tape, i)
    if nowhere or (tape.look is not None and not tape.look.done):
        state, needed = tape.steps.tried(i, state, tape.wanted(i, state), tape.look)
        tape.first += nowhere and not needed
        return state
    return tape.steps.advance(i, state)


def _leads_nowhere(tape: Tape, i: int) -> bool:
    """Return whether nothing before step i needs a gradient, as far as is known."""
    return i == tape.first and not tape.from_start


def _forget_unneeded(tape: Tape) -> None:
    loaded = {a.index for a in tape.backward_actions() if isinstance(a, Load)}
    for i in [i for i in tape.nodes if i < tape.first and i not in loaded]:
        del tape.nodes[i]
