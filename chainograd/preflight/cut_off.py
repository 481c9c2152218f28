"""A chain whose result has no gradient although it uses what needs one: refused, with the line."""

from __future__ import annotations

import torch

from chainograd.engine.run import Run
from chainograd.errors import ChainError
from chainograd.preflight.diagnosis import without_gradient
from chainograd.preflight.rehearsal import first_cut
from chainograd.preflight.sites import definition


def may_be_cut_off(run: Run) -> bool:
    """Return whether no result of a run has a gradient although something could give it one."""
    if any(map(any, run.wanted[1:])):
        return False
    return bool(run.steps.shared) or (any(run.wanted[0]) and run.passes(0))


def refuse_cut_off(run: Run) -> None:
    """See that steps whose results need no gradient use nothing that needs one.

    The steps run once more under watch, in a call in which no result needs a gradient although
    the chain reaches something trainable. A step may do without it: a trainer's sampler that
    reaches its discriminator too.

    Raises:
        ChainError: If a step cuts the gradient off.
    """
    state = run.x_T
    with run.beforehand(), torch.enable_grad():
        run.rng.set(run.random[0])
        for i in range(run.plan.num_steps):
            if not run.passes(i):
                state = run.steps.unrecorded(i, state)
                continue
            entering = state.entering(run.wanted[i])
            state, cut = first_cut(run, i, entering)
            if cut is not None or any(run.wanted[i]):
                found = without_gradient("What the step gives", cut, i)
                where = found.where or definition(run.steps.step)
                raise ChainError(
                    f"Step {i} cuts every gradient off{_at(where)}, although it uses tensors "
                    f"that require one. {found.text} `chain.check(x)` looks at all of this. If no "
                    "gradient is wanted, call the chain under `torch.no_grad()`."
                )


def _at(where: str | None) -> str:
    return "" if where is None else f" ({where})"
