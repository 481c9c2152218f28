"""A chain whose result has no gradient although it uses what needs one: refused, with the line."""

from __future__ import annotations

import torch

from chainograd.engine.run import Tape
from chainograd.errors import ChainError
from chainograd.preflight.diagnosis import without_gradient
from chainograd.preflight.rehearsal import first_cut
from chainograd.preflight.sites import definition


def may_be_cut_off(tape: Tape) -> bool:
    """Return whether no result of a run has a gradient although something could give it one."""
    if any(map(any, tape.wanted[1:])):
        return False
    return bool(tape.steps.shared) or (any(tape.wanted[0]) and tape.passes(0))


def refuse_cut_off(tape: Tape) -> None:
    """See that steps whose results need no gradient use nothing that needs one.

    The steps run once more under watch, in a call in which no result needs a gradient although
    the chain reaches something trainable. A step may do without it: a trainer's sampler that
    reaches its discriminator too.

    Raises:
        ChainError: If a step cuts the gradient off.
    """
    state = tape.x_T
    with tape.beforehand(), torch.enable_grad():
        tape.streams.set(tape.random[0])
        for i in range(tape.plan.num_steps):
            if not tape.passes(i):
                state = tape.steps.unrecorded(i, state)
                continue
            entering = state.entering(tape.wanted[i])
            state, cut = first_cut(tape, i, entering)
            if cut is not None or any(tape.wanted[i]):
                found = without_gradient("What the step gives", cut, i)
                where = found.where or definition(tape.steps.step)
                raise ChainError(
                    f"Step {i} cuts every gradient off{_at(where)}, although it uses tensors "
                    f"that require one. {found.text} `chain.check(x)` looks at all of this. If no "
                    "gradient is wanted, call the chain under `torch.no_grad()`."
                )


def _at(where: str | None) -> str:
    return "" if where is None else f" ({where})"
