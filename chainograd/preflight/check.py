"""`chain.check`: observes a few steps of a chain and returns findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from chainograd.engine.independence import compare_slices
from chainograd.engine.microbatch import SlicedStep
from chainograd.engine.run import Run
from chainograd.errors import ChainError
from chainograd.preflight.diagnosis import (
    in_place,
    in_training,
    not_finite,
    of_noise,
    refused,
    unrepeated,
)
from chainograd.preflight.exactness import CERTAIN, Prepare, all_steps, inexact
from chainograd.preflight.findings import Finding, Findings
from chainograd.preflight.gradient_diagnosis import cut_off, cut_off_in_the_loss, of_cotangents
from chainograd.preflight.rehearsal import (
    FIRST,
    ObservedStep,
    run_again,
    run_first,
    watched_loss,
)
from chainograd.preflight.send_back import send_back
from chainograd.preflight.sites import definition
from chainograd.state import State, wants_gradient
from chainograd.torch_internals.modes import is_fake

Loss = Callable[[Any], Any]


def check(prepare: Prepare, num_steps: int, x: Any, loss: Loss | None) -> Findings:
    """Return the findings about a chain; see `CheckpointedChain.check`.

    Args:
        prepare: ``prepare(m, x)`` returns a run of the first m steps from the state x.
        num_steps: M.
        x: The state that enters step 0.
        loss: A function from the last state to a loss, or None.
    """
    start = State.of(x)
    if any(is_fake(leaf) for leaf in start.leaves):
        return Findings([Finding("refused", None, None, _FAKE)])
    if torch.is_inference_mode_enabled() or any(t.is_inference() for t in start.tensors):
        return Findings([Finding("refused", None, None, _INFERENCE)])
    try:
        run = prepare(num_steps, x)
        nothing = not run.inputs.tensors
        if nothing:  # gradients can still be observed, with regard to x
            run = prepare(num_steps, start.entering([True] * len(start.leaves)).tree())
        if run.shared.sharded:
            return Findings([Finding("refused", None, None, _SHARDS)])
        if isinstance(run.step, SlicedStep):
            first = prepare(min(FIRST, num_steps), x)
            assert isinstance(first.step, SlicedStep)
            with first.surroundings.of_trials(first.step.function):
                compare_slices(first, first.step)
    except ChainError as error:
        return Findings([Finding("refused", None, None, str(error))])
    with ExitStack() as undo, run.surroundings.of_first_runs(), torch.enable_grad():
        return _checked(prepare, run, nothing, loss, undo)


def _checked(
    prepare: Prepare, run: Run, nothing: bool, loss: Loss | None, undo: ExitStack
) -> Findings:
    begun = run.surroundings.rng.state()
    observed_steps = run_first(run, undo)
    found = [*in_training(observed_steps), *of_noise(observed_steps)]
    if observed_steps[-1].error is not None:
        found += [*in_place(observed_steps), *refused(observed_steps[-1])]
    else:
        again = run_again(run, observed_steps, undo)
        found += [
            *in_place(observed_steps, again),
            *unrepeated(observed_steps, again, run.options.verify),
        ]
        known = {finding.kind for finding in found}
        if not known & {"changed in place", "unknown generator", "not repeatable"}:
            run.surroundings.rng.set(begun)
            found += all_steps(prepare, run)
        found += _of_gradients(
            prepare, run, observed_steps, loss, {finding.kind for finding in found}
        )
    if nothing and not any(finding.kind == "captured tensor" for finding in found):
        found.insert(0, Finding("nothing to train", None, None, _NOTHING))
    place = definition(run.step.function)
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
    """Return the findings about gradients; ``known`` are the kinds that were found before."""
    end = observed_steps[-1].leaving
    found = [*not_finite(observed_steps), *cut_off(observed_steps, bool(run.shared.inside))]
    reached = any(map(wants_gradient, end.leaves))
    value = None
    if loss is not None:
        value, cuts = watched_loss(loss, end)
        found += cut_off_in_the_loss(value, cuts) if reached else ()
    known |= {finding.kind for finding in found}
    # A tensor that was changed in place has left the graph.
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
        f"Nothing found in {steps} {indices}: a rerun returns the same and changes nothing in "
        f"place; gradients pass {through}, are finite and equal the plain loop's; no dropout, no "
        "batch statistics, no noise from a global random stream."
    )


_FAKE = "The state holds fake tensors, which have no values to compare. Check it on real tensors."
_INFERENCE = (
    "Tensors of inference mode cannot have a gradient. Call `check` outside of `inference_mode`, "
    "on `x.clone()` if `x` was made in it."
)
_SHARDS = (
    "The steps use a network that FSDP2 shards, and FSDP2 expects every run of the network to be a "
    "training step. Check the chain before `fully_shard`."
)
_NOTHING = (
    "Nothing requires a gradient: neither the state, nor an argument, nor a parameter of the "
    "steps. Call `requires_grad_()` on the tensors to be trained, or on `x`."
)
