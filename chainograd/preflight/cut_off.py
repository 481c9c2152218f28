"""Refuses a chain whose result has no gradient although its steps use trainable tensors."""

from __future__ import annotations

import torch

from chainograd.engine.abstract_step import Recording
from chainograd.engine.run import Run
from chainograd.errors import ChainError
from chainograd.preflight.gradient_diagnosis import without_gradient
from chainograd.preflight.rehearsal import first_cut
from chainograd.preflight.sites import definition


def refuse_cut_off(run: Run) -> None:
    """Raise if a step cuts off the gradient of a trainable tensor that it uses.

    This is called if no result of a call requires a gradient although the chain reaches a trainable
    tensor. That may be right: a trainer's sampler also reaches the trainer's discriminator, and
    does not use it. So the steps run once more, observed.

    Raises:
        ChainError: If a step cuts off the gradient.
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
                found = without_gradient("The step's result", cut, i)
                where = found.where or definition(run.step.function)
                raise ChainError(
                    f"Step {i} cuts every gradient off{_at(where)}, although it uses tensors "
                    f"that require a gradient. {found.text} `chain.check(x)` lists all such "
                    "places. If no gradient is wanted, call the chain under `torch.no_grad()`."
                )


def _at(where: str | None) -> str:
    return "" if where is None else f" ({where})"
