"""Runs a few steps of a chain under watch, forward, once more, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from chainograd.captured.find import buffers_in_training
from chainograd.engine.graph import leaves_used
from chainograd.engine.run import Run
from chainograd.errors import ChainError
from chainograd.preflight.observers import (
    Detach,
    DetachTracker,
    MutationTracker,
    Observing,
    RNGTracker,
)
from chainograd.replay.rng import RNGState
from chainograd.state import State, differentiable, wants_gradient

FIRST = 3  # how many steps from the first one are run

# Note [Rehearsal]
# 1. The first steps run as the plain loop, with one graph; its gradient is the oracle for that of
#    a chain of the same steps. They are few, because this is the memory the chain saves.
# 2. The last step runs on what the first ones leave, for it is often one of its own kind: the state
#    is not one it would meet. So nothing is made of numbers it gives that are not finite, nor of
#    an exception.
# 3. Tensors that a run changes are put back when all is over. What a step that is no pure function
#    keeps in attributes of its own cannot be.


@dataclass(slots=True, eq=False)
class ObservedStep:
    """A watched run of a step.

    Attributes:
        index: The step.
        entering: The state it was given.
        random: Where the random streams stood.
        leaving: The state it gave; without leaves if it failed.
        error: What it raised.
        drew_on_host: Whether it drew from Python's or numpy's stream.
    """

    index: int
    entering: State
    random: RNGState
    cuts: DetachTracker
    changes: MutationTracker
    draws: RNGTracker
    leaving: State = field(init=False)
    error: Exception | None = None
    drew_on_host: bool = False

    def explains_itself(self) -> bool:
        """Return whether it ran, or failed for a reason that can be named."""
        named = isinstance(self.error, ChainError) or self.changes.entering is not None
        return self.error is None or named


def watched(run: Run, index: int, state: State, undo: ExitStack) -> ObservedStep:
    """Run a step in the grad mode in force, and see what it does."""
    rng = run.rng
    observed = ObservedStep(
        index,
        entering=state,
        random=rng.state(),
        cuts=DetachTracker(),
        changes=MutationTracker(state.tensors, buffers_in_training(run.context.modes), undo),
        draws=RNGTracker(rng.defaults, rng.generators, undo),
    )
    observed.leaving = state._replace(leaves=())
    try:
        with Observing(observed.cuts, observed.changes, observed.draws):
            observed.leaving = run.steps.run(index, state)
    except Exception as error:
        observed.error = error
    observed.drew_on_host = not observed.random.same_on_host(rng.state(observed.random))
    return observed


def first_cut(run: Run, index: int, state: State) -> tuple[State, Detach | None]:
    """Run a step and return its result without a graph, and where that was cut off, if it was."""
    ours = {id(leaf) for leaf in (*state.leaves, *run.steps.shared) if wants_gradient(leaf)}
    # What a step makes to require a gradient, as guidance does, is its own affair.
    cuts = DetachTracker(
        lambda tensor: any(id(use[0]) in ours for use in leaves_used([tensor], None)[0])
    )
    with Observing(cuts):
        leaving = run.steps.run(index, state)
    found = next(filter(None, map(cuts.of, leaving.tensors)), cuts.left)
    if found is None and any(map(wants_gradient, state.leaves)):
        found = cuts.last
    return leaving.detached(), found


def run_first(run: Run, undo: ExitStack) -> list[ObservedStep]:
    """Run the first steps and the last one, with one graph through them all.

    Returns:
        The runs, up to the first that failed for a reason that can be named.

    Raises:
        Exception: What a step raises that has another reason.
    """
    observed_steps: list[ObservedStep] = []
    state = run.x_T.entering(run.wanted[0])
    for i in sorted({*range(min(FIRST, run.plan.num_steps)), run.plan.num_steps - 1}):
        observed = watched(run, i, state, undo)
        if i >= FIRST and (observed.error is not None or not finite(observed.leaving)):
            break  # note [Rehearsal], 2
        if observed.error is not None and not observed.explains_itself():
            raise observed.error
        observed_steps.append(observed)
        if observed.error is not None:
            break
        state = observed.leaving._replace(leaves=tuple(map(_usable, observed.leaving.leaves)))
    return observed_steps


def run_again(
    run: Run, observed_steps: Sequence[ObservedStep], undo: ExitStack
) -> list[ObservedStep]:
    """Run each step again from the state it was given, as a chain would, the last one first."""
    again = []
    for observed in reversed(observed_steps):
        run.rng.set(observed.random)
        with torch.no_grad():
            again.append(watched(run, observed.index, observed.entering.detached(), undo))
    return again[::-1]


@dataclass(slots=True, eq=False)
class Cotangents:
    """What came back through the runs.

    Attributes:
        nodes: For the state that enters each run, and the one that leaves the last, a cotangent
            a leaf.
        given: The cotangent of the state that leaves the first steps, from which those of the
            inputs were computed.
        inputs: The gradients of the run's inputs, through the first steps alone.
    """

    nodes: list[list[Tensor | None]]
    given: list[Tensor | None]
    inputs: list[Tensor | None]


def send_back(run: Run, observed_steps: Sequence[ObservedStep], value: Tensor | None) -> Cotangents:
    """Send a cotangent back through the runs.

    Args:
        run: What they belong to.
        observed_steps: Those of `run_first`.
        value: A loss on the state that leaves them. Without one, a fixed random cotangent is
            sent.
    """
    states = [observed_steps[0].entering, *(observed.leaving for observed in observed_steps)]
    K = sum(observed.index < FIRST for observed in observed_steps)
    nodes: list[list[Tensor | None]] = [[] for _ in states]
    last = states[-1].leaves
    nodes[-1] = _some(last) if value is None else _pulled([value], [torch.ones_like(value)], last)
    if len(observed_steps) > K:
        nodes[K] = _pulled(last, _or_some(nodes[-1], last), states[K].leaves)
    given = _or_some(nodes[K], states[K].leaves)
    wanted = [leaf for leaf in states[0].leaves if wants_gradient(leaf)] + run.steps.shared
    between = [leaf for state in states[:K] for leaf in state.leaves]
    found = iter(_pulled(states[K].leaves, given, [*between, *wanted]))
    for k in range(K):
        nodes[k] = [next(found) for _ in states[k].leaves]
    return Cotangents(nodes, given, list(found))


def watched_loss(loss: Callable[[Any], Any], state: State) -> tuple[Any, DetachTracker]:
    """Return what a loss makes of a state, and where it is cut off from it."""
    cuts = DetachTracker()
    with Observing(cuts):
        return loss(state.tree()), cuts


def finite(state: State) -> bool:
    """Return whether all numbers of a state are finite."""
    return all(bool(torch.isfinite(leaf).all()) for leaf in state.leaves if differentiable(leaf))


def _usable(leaf: Any) -> Any:
    """Return a leaf for the next step to take: tensors made in inference mode are of no use."""
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


def _pulled(
    outputs: Sequence[Any], cotangents: Sequence[Tensor | None], inputs: Sequence[Any]
) -> list[Tensor | None]:
    """Return the gradient of every input, None where there is none."""
    pairs = [
        (output, g)
        for output, g in zip(outputs, cotangents, strict=True)
        if wants_gradient(output) and g is not None
    ]
    if not pairs or not any(map(wants_gradient, inputs)):
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            [leaf for leaf in inputs if wants_gradient(leaf)],
            [g for _, g in pairs],
            retain_graph=True,
            allow_unused=True,
        )
    )
    return [next(found) if wants_gradient(leaf) else None for leaf in inputs]


def _some(leaves: Sequence[Any]) -> list[Tensor | None]:
    """Return a fixed random cotangent for leaves: a sum's may be blind, as that of a softmax is."""
    return [
        torch.randn(
            leaf.shape,
            dtype=leaf.dtype,
            device=leaf.device,
            generator=Generator(leaf.device).manual_seed(place),
        )
        if wants_gradient(leaf)
        else None
        for place, leaf in enumerate(leaves)
    ]


def _or_some(cotangents: list[Tensor | None], leaves: Sequence[Any]) -> list[Tensor | None]:
    return _some(leaves) if all(g is None for g in cotangents) else cotangents
