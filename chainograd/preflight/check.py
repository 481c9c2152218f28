"""The preflight of a chain: a few of its steps, watched, and what they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from chainograd.engine.independence import compare_slices
from chainograd.engine.microbatch import SlicedSteps
from chainograd.engine.run import Tape
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
from chainograd.preflight.rehearsal import FIRST, Run, go_back, run_again, run_first, watched_loss
from chainograd.preflight.sites import definition
from chainograd.state import State, wants_gradient

Loss = Callable[[Any], Any]


def check(prepare: Prepare, num_steps: int, x: Any, loss: Loss | None) -> Findings:
    """Return what a few steps show about a chain; see `CheckpointedChain.check`.

    Args:
        prepare: ``prepare(m, x)`` makes a tape of the first m steps on a state.
        num_steps: M.
        x: The state that enters step 0.
        loss: Maps the last state to a loss, if there is one.
    """
    start = State.of(x)
    if any(isinstance(leaf, FakeTensor) for leaf in start.leaves):
        return Findings([Finding("refused", None, None, _FAKE)])
    if torch.is_inference_mode_enabled() or any(t.is_inference() for t in start.tensors):
        return Findings([Finding("refused", None, None, _INFERENCE)])
    try:
        tape = prepare(num_steps, x)
        nothing = not tape.inputs
        if nothing:  # what there is to see of a gradient is seen on x
            tape = prepare(num_steps, start.entering([True] * len(start.leaves)).tree())
        if tape.steps.sharded:
            return Findings([Finding("refused", None, None, _SHARDS)])
        if isinstance(tape.steps, SlicedSteps):
            first = prepare(min(FIRST, num_steps), x)
            assert isinstance(first.steps, SlicedSteps)
            with first.beforehand():
                compare_slices(first, first.steps)
    except ChainError as error:
        return Findings([Finding("refused", None, None, str(error))])
    with ExitStack() as undo, tape.like_first(), torch.enable_grad():
        return _checked(prepare, tape, nothing, loss, undo)


def _checked(
    prepare: Prepare, tape: Tape, nothing: bool, loss: Loss | None, undo: ExitStack
) -> Findings:
    begun = tape.streams.state()
    runs = run_first(tape, undo)
    found = [*in_training(runs), *of_noise(runs)]
    if runs[-1].error is not None:
        found += [*in_place(runs), *refused(runs[-1])]
    else:
        again = run_again(tape, runs, undo)
        found += [*in_place(runs, again), *unrepeated(runs, again, tape.verify)]
        known = {finding.kind for finding in found}
        if not known & {"changed in place", "unknown generator", "not repeatable"}:
            tape.streams.set(begun)
            found += all_steps(prepare, tape)
        found += _of_gradients(prepare, tape, runs, loss, {finding.kind for finding in found})
    if nothing and not any(finding.kind == "captured tensor" for finding in found):
        found.insert(0, Finding("nothing to train", None, None, _NOTHING))
    place = definition(tape.steps.step)
    placed = [
        finding if finding.where or finding.step is None else replace(finding, where=place)
        for finding in found
    ]
    return Findings(placed, _good(runs, loss))


def _of_gradients(
    prepare: Prepare, tape: Tape, runs: Sequence[Run], loss: Loss | None, known: set[str]
) -> list[Finding]:
    """Return what there is to say of the way back, with what is ``known`` of the way there."""
    end = runs[-1].leaving
    found = [*not_finite(runs), *cut_off(runs, bool(tape.steps.shared))]
    reached = any(map(wants_gradient, end.leaves))
    value = None
    if loss is not None:
        value, cuts = watched_loss(loss, end)
        found += cut_off_in_the_loss(value, cuts) if reached else ()
    known |= {finding.kind for finding in found}
    # What is changed in place is gone from the graph.
    if reached and not known & {"changed in place", "not finite", *CERTAIN}:
        try:
            back = go_back(tape, runs, value if wants_gradient(value) else None)
        except RuntimeError as error:
            problem = f"The backward pass of the plain loop fails: {str(error).splitlines()[0]}"
            return [*found, Finding("refused", None, None, problem)]
        found += of_cotangents(runs, back)
        known |= {finding.kind for finding in found}
        if not known & {"unknown generator", "not repeatable", "not finite"}:
            found += inexact(prepare, tape, runs, back)
    ends = {finding.where for finding in found if finding.kind in ("detached", "gradients off")}
    return [f for f in found if f.kind != "partly detached" or f.where not in ends]


def _good(runs: Sequence[Run], loss: Loss | None) -> str:
    indices = ", ".join(str(run.index) for run in runs)
    through = "the steps" if loss is None else "the loss and the steps"
    return (
        f"Nothing found in {'step' if len(runs) == 1 else 'steps'} {indices}: run again they give "
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
