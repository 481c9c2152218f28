"""The preflight of a chain: a few of its steps, watched, and what they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from chainograd.engine.independence import compare_slices
from chainograd.engine.microbatch import SlicedSteps
from chainograd.engine.run import Run
from chainograd.errors import ChainError
from chainograd.preflight.diagnosis import (
    cut_off,
    cut_off_in_the_loss,
    in_place,
    in_training,
    not_finite,
    of_cotangents,
    of_noise,
    refused,
    unrepeated,
)
from chainograd.preflight.exactness import CERTAIN, Prepare, all_steps, inexact
from chainograd.preflight.findings import Finding, Findings
from chainograd.preflight.rehearsal import (
    FIRST,
    ObservedStep,
    run_again,
    run_first,
    send_back,
    watched_loss,
)
from chainograd.preflight.sites import definition
from chainograd.state import State, wants_gradient
from chainograd.torch_internals.modes import is_fake

Loss = Callable[[Any], Any]


def check(prepare: Prepare, num_steps: int, x: Any, loss: Loss | None) -> Findings:
    """Return what a few steps show about a chain; see `CheckpointedChain.check`.

    Args:
        prepare: ``prepare(m, x)`` makes a run of the first m steps on a state.
        num_steps: M.
        x: The state that enters step 0.
        loss: Maps the last state to a loss, if there is one.
    """
    start = State.of(x)
    if any(is_fake(leaf) for leaf in start.leaves):
        return Findings([Finding("refused", None, None, _FAKE)])
    if torch.is_inference_mode_enabled() or any(t.is_inference() for t in start.tensors):
        return Findings([Finding("refused", None, None, _INFERENCE)])
    try:
        run = prepare(num_steps, x)
        nothing = not run.inputs
        if nothing:  # what there is to see of a gradient is seen on x
            run = prepare(num_steps, start.entering([True] * len(start.leaves)).tree())
        if run.steps.sharded:
            return Findings([Finding("refused", None, None, _SHARDS)])
        if isinstance(run.steps, SlicedSteps):
            first = prepare(min(FIRST, num_steps), x)
            assert isinstance(first.steps, SlicedSteps)
            with first.beforehand():
                compare_slices(first, first.steps)
    except ChainError as error:
        return Findings([Finding("refused", None, None, str(error))])
    with ExitStack() as undo, run.like_first(), torch.enable_grad():
        return _checked(prepare, run, nothing, loss, undo)


def _checked(
    prepare: Prepare, run: Run, nothing: bool, loss: Loss | None, undo: ExitStack
) -> Findings:
    begun = run.rng.state()
    observed_steps = run_first(run, undo)
    found = [*in_training(observed_steps), *of_noise(observed_steps)]
    if observed_steps[-1].error is not None:
        found += [*in_place(observed_steps), *refused(observed_steps[-1])]
    else:
        again = run_again(run, observed_steps, undo)
        found += [*in_place(observed_steps, again), *unrepeated(observed_steps, again, run.verify)]
        known = {finding.kind for finding in found}
        if not known & {"changed in place", "unknown generator", "not repeatable"}:
            run.rng.set(begun)
            found += all_steps(prepare, run)
        found += _of_gradients(
            prepare, run, observed_steps, loss, {finding.kind for finding in found}
        )
    if nothing and not any(finding.kind == "captured tensor" for finding in found):
        found.insert(0, Finding("nothing to train", None, None, _NOTHING))
    place = definition(run.steps.step)
    placed = [
        finding if finding.where or finding.step is None else replace(finding, where=place)
        for finding in found
    ]
    return Findings(placed, _good(observed_steps, loss))


def _of_gradients(
    prepare: Prepare,
    run: Run,
    observed_steps: Sequence[ObservedStep],
    loss: Loss | None,
    known: set[str],
) -> list[Finding]:
    """Return what there is to say of the way back, with what is ``known`` of the way there."""
    end = observed_steps[-1].leaving
    found = [*not_finite(observed_steps), *cut_off(observed_steps, bool(run.steps.shared))]
    reached = any(map(wants_gradient, end.leaves))
    value = None
    if loss is not None:
        value, cuts = watched_loss(loss, end)
        found += cut_off_in_the_loss(value, cuts) if reached else ()
    known |= {finding.kind for finding in found}
    # What is changed in place is gone from the graph.
    if reached and not known & {"changed in place", "not finite", *CERTAIN}:
        try:
            back = send_back(run, observed_steps, value if wants_gradient(value) else None)
        except RuntimeError as error:
            problem = f"The backward pass of the plain loop fails: {str(error).splitlines()[0]}"
            return [*found, Finding("refused", None, None, problem)]
        found += of_cotangents(observed_steps, back)
        known |= {finding.kind for finding in found}
        if not known & {"unknown generator", "not repeatable", "not finite"}:
            found += inexact(prepare, run, observed_steps, back)
    ends = {finding.where for finding in found if finding.kind in ("detached", "gradients off")}
    return [f for f in found if f.kind != "partly detached" or f.where not in ends]


def _good(observed_steps: Sequence[ObservedStep], loss: Loss | None) -> str:
    indices = ", ".join(str(observed.index) for observed in observed_steps)
    steps = "step" if len(observed_steps) == 1 else "steps"
    through = "the steps" if loss is None else "the loss and the steps"
    return (
        f"Nothing found in {steps} {indices}: run again they give "
        f"the same and change nothing in place, gradients pass {through}, are finite and are those "
        "of the plain loop, and nothing drops out, normalises by the batch or draws from a global "
        "random stream."
    )


_FAKE = "These are fake tensors, which have no values to compare. Check the chain on real ones."
_INFERENCE = (
    "Nothing made in inference mode can have a gradient. Call this outside of `inference_mode`, "
    "on `x.clone()` if `x` was made in it."
)
_SHARDS = (
    "FSDP2 shards a network in the steps, and runs that are no training run would confuse it. "
    "Check the chain before `fully_shard`."
)
_NOTHING = (
    "Nothing here requires a gradient: not the state, no argument, no parameter that the steps "
    "reach. Call `requires_grad_()` on what is to be trained, or on `x`."
)
