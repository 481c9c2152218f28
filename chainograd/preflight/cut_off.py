"""A chain whose result has no gradient although it uses what needs one: refused, with the line."""

from __future__ import annotations

import torch

from chainograd.engine.abstract_step import Recording
from chainograd.engine.run import Run
from chainograd.errors import ChainError
from chainograd.preflight.diagnosis import without_gradient
from chainograd.preflight.rehearsal import first_cut
from chainograd.preflight.sites import definition


def refuse_cut_off(run: Run) -> None:
    """See that steps whose results need no gradient use nothing that needs one.

    The steps run once more under watch, in a call in which no result needs a gradient although
    the chain reaches something trainable. A step may do without it: a trainer's sampler that
    reaches its discriminator too.

    Raises:
        ChainError: If a step cuts the gradient off.
    """
    state = run.x_T
    with run.surroundings.of_trials(run.step.function), torch.enable_grad():
        run.surroundings.rng.set(run.surroundings.random[0])
        for i in range(run.plan.num_steps):
            wanted = run.first_pass.wanted[i]
            if not run.options.passes(i):
                state = run.step.run(i, state, wanted, run.mark(i), record=Recording.OFF).leaving
                continue
            entering = state.entering(wanted)
            state, cut = first_cut(run, i, entering)
            if cut is not None or any(wanted):
                found = without_gradient("What the step gives", cut, i)
                where = found.where or definition(run.step.function)
                raise ChainError(
                    f"Step {i} cuts every gradient off{_at(where)}, although it uses tensors "
                    f"that require one. {found.text} `chain.check(x)` looks at all of this. If no "
                    "gradient is wanted, call the chain under `torch.no_grad()`."
                )


def _at(where: str | None) -> str:
    return "" if where is None else f" ({where})"
