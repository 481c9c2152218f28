"""Runs a few steps of a chain under watch, forward, once more, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from chainograd.engine.graph import leaves_used
from chainograd.engine.run import Tape
from chainograd.errors import ChainError
from chainograd.preflight.observers import Changes, Cut, Cuts, Draws, Watch
from chainograd.replay.buffers import statistics
from chainograd.replay.rng import Streams
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
class Run:
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
    random: Streams
    cuts: Cuts
    changes: Changes
    draws: Draws
    leaving: State = field(init=False)
    error: Exception | None = None
    drew_on_host: bool = False

    def explains_itself(self) -> bool:
        """Return whether it ran, or failed for a reason that can be named."""
        named = isinstance(self.error, ChainError) or self.changes.entering is not None
        return self.error is None or named


def watched(tape: Tape, index: int, state: State, undo: ExitStack) -> Run:
    """Run a step in the grad mode in force, and see what it does."""
    streams = tape.streams
    run = Run(
        index,
        entering=state,
        random=streams.state(),
        cuts=Cuts(),
        changes=Changes(state.tensors, statistics(tape.surroundings.modes), undo),
        draws=Draws(streams.defaults, streams.generators, undo),
    )
    run.leaving = state._replace(leaves=())
    try:
        with Watch(run.cuts, run.changes, run.draws):
            run.leaving = tape.steps.run(index, state)
    except Exception as error:
        run.error = error
    run.drew_on_host = not run.random.same_on_host(streams.state(run.random))
    return run


def first_cut(tape: Tape, index: int, state: State) -> tuple[State, Cut | None]:
    """Run a step and return its result without a graph, and where that was cut off, if it was."""
    ours = {id(leaf) for leaf in (*state.leaves, *tape.steps.shared) if wants_gradient(leaf)}
    # What a step makes to require a gradient, as guidance does, is its own affair.
    cuts = Cuts(lambda tensor: any(id(use[0]) in ours for use in leaves_used([tensor], None)[0]))
    with Watch(cuts):
        leaving = tape.steps.run(index, state)
    found = next(filter(None, map(cuts.of, leaving.tensors)), cuts.left)
    if found is None and any(map(wants_gradient, state.leaves)):
        found = cuts.last
    return leaving.detached(), found


def run_first(tape: Tape, undo: ExitStack) -> list[Run]:
    """Run the first steps and the last one, with one graph through them all.

    Returns:
        The runs, up to the first that failed for a reason that can be named.

    Raises:
        Exception: What a step raises that has another reason.
    """
    runs: list[Run] = []
    state = tape.x_T.entering(tape.wanted[0])
    for i in sorted({*range(min(FIRST, tape.plan.num_steps)), tape.plan.num_steps - 1}):
        run = watched(tape, i, state, undo)
        if i >= FIRST and (run.error is not None or not finite(run.leaving)):
            break  # note [Rehearsal], 2
        if run.error is not None and not run.explains_itself():
            raise run.error
        runs.append(run)
        if run.error is not None:
            break
        state = run.leaving._replace(leaves=tuple(map(_usable, run.leaving.leaves)))
    return runs


def run_again(tape: Tape, runs: Sequence[Run], undo: ExitStack) -> list[Run]:
    """Run each step again from the state it was given, as a chain would, the last one first."""
    again = []
    for run in reversed(runs):
        tape.streams.set(run.random)
        with torch.no_grad():
            again.append(watched(tape, run.index, run.entering.detached(), undo))
    return again[::-1]


@dataclass(slots=True, eq=False)
class Cotangents:
    """What came back through the runs.

    Attributes:
        nodes: For the state that enters each run, and the one that leaves the last, a cotangent
            a leaf.
        given: The cotangent of the state that leaves the first steps, from which those of the
            inputs were computed.
        inputs: The gradients of the tape's inputs, through the first steps alone.
    """

    nodes: list[list[Tensor | None]]
    given: list[Tensor | None]
    inputs: list[Tensor | None]


def go_back(tape: Tape, runs: Sequence[Run], value: Tensor | None) -> Cotangents:
    """Send a cotangent back through the runs.

    Args:
        tape: What they belong to.
        runs: Those of `run_first`.
        value: A loss on the state that leaves them. Without one, a fixed random cotangent is
            sent.
    """
    states = [runs[0].entering, *(run.leaving for run in runs)]
    K = sum(run.index < FIRST for run in runs)
    nodes: list[list[Tensor | None]] = [[] for _ in states]
    last = states[-1].leaves
    nodes[-1] = _some(last) if value is None else _pulled([value], [torch.ones_like(value)], last)
    if len(runs) > K:
        nodes[K] = _pulled(last, _or_some(nodes[-1], last), states[K].leaves)
    given = _or_some(nodes[K], states[K].leaves)
    wanted = [leaf for leaf in states[0].leaves if wants_gradient(leaf)] + tape.steps.shared
    between = [leaf for state in states[:K] for leaf in state.leaves]
    found = iter(_pulled(states[K].leaves, given, [*between, *wanted]))
    for k in range(K):
        nodes[k] = [next(found) for _ in states[k].leaves]
    return Cotangents(nodes, given, list(found))


def watched_loss(loss: Callable[[Any], Any], state: State) -> tuple[Any, Cuts]:
    """Return what a loss makes of a state, and where it is cut off from it."""
    cuts = Cuts()
    with Watch(cuts):
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
