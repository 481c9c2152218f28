"""A rehearsal: a few observed steps of a chain, run and run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chainograd.captured.find import buffers_in_training
from chainograd.engine.graph import leaves_used
from chainograd.engine.run import Run
from chainograd.errors import ChainError
from chainograd.preflight.detach_tracker import Detach, DetachTracker
from chainograd.preflight.mutation_tracker import MutationTracker
from chainograd.preflight.observers import Observing
from chainograd.preflight.rng_tracker import RNGTracker
from chainograd.replay.rng import RNGState
from chainograd.state import State, differentiable, wants_gradient

FIRST = 3  # how many of the first steps are run

# Note [Rehearsal]
# 1. The first steps run as the plain loop, with one graph. The loop's gradient is the oracle for
#    the gradient of a chain of the same steps. They are few, because a chain exists to avoid this
#    memory.
# 2. The last step is often special, so it runs too, on the state that the first steps leave. It
#    would never meet this state in a call. So if it raises, or returns numbers that are not finite,
#    that is no finding.
# 3. Tensors that a run changes are restored at the end. Attributes of a step that is not a pure
#    function cannot be restored.


@dataclass(slots=True, eq=False)
class ObservedStep:
    """An observed run of a step.

    Attributes:
        index: The step.
        entering: The state that entered the step.
        random: The random state before the run.
        cuts: Where the gradient was cut off.
        changes: What was changed in place.
        draws: What was drawn from random generators.
        leaving: The state that the step returned; without leaves if it raised.
        error: The exception that it raised, if any.
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
        """Return whether the run succeeded, or failed for a reason that a finding names."""
        named = isinstance(self.error, ChainError) or self.changes.entering is not None
        return self.error is None or named


def watched(run: Run, index: int, state: State, undo: ExitStack) -> ObservedStep:
    """Run a step, in the current grad mode, and observe it."""
    rng = run.surroundings.rng
    observed = ObservedStep(
        index,
        entering=state,
        random=rng.state(),
        cuts=DetachTracker(),
        changes=MutationTracker(
            state.tensors, buffers_in_training(run.surroundings.context.modes), undo
        ),
        draws=RNGTracker(rng.defaults, rng.generators, undo),
    )
    observed.leaving = state._replace(leaves=())
    try:
        with Observing(observed.cuts, observed.changes, observed.draws):
            observed.leaving = run.step(index, state)
    except Exception as error:
        observed.error = error
    observed.drew_on_host = not observed.random.same_on_host(rng.state(observed.random))
    return observed


def first_cut(run: Run, index: int, state: State) -> tuple[State, Detach | None]:
    """Run a step; return its result, detached, and where its gradient was cut off, if it was."""
    ours = {id(leaf) for leaf in (*state.leaves, *run.shared.inside) if wants_gradient(leaf)}
    # A tensor that the step itself makes a leaf, as guidance does, does not count.
    cuts = DetachTracker(
        lambda tensor: any(id(use[0]) in ours for use in leaves_used([tensor], None)[0])
    )
    with Observing(cuts):
        leaving = run.step(index, state)
    found = next(filter(None, map(cuts.of, leaving.tensors)), cuts.left)
    if found is None and any(map(wants_gradient, state.leaves)):
        found = cuts.last
    return leaving.detached(), found


def run_first(run: Run, undo: ExitStack) -> list[ObservedStep]:
    """Run the first steps and the last one, with one graph through them all.

    Returns:
        The runs, up to the first that failed for a reason that a finding names.

    Raises:
        Exception: If a step raises for another reason.
    """
    observed_steps: list[ObservedStep] = []
    state = run.x_T.entering(run.first_pass.wanted[0])
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
    """Run each step again from the state that entered it, as a chain would: the last first."""
    again = []
    for observed in reversed(observed_steps):
        run.surroundings.rng.set(observed.random)
        with torch.no_grad():
            again.append(watched(run, observed.index, observed.entering.detached(), undo))
    return again[::-1]


def watched_loss(loss: Callable[[Any], Any], state: State) -> tuple[Any, DetachTracker]:
    """Return the loss on a state, and where the loss is cut off from the state."""
    cuts = DetachTracker()
    with Observing(cuts):
        return loss(state.tree()), cuts


def finite(state: State) -> bool:
    """Return whether all numbers of a state are finite."""
    return all(bool(torch.isfinite(leaf).all()) for leaf in state.leaves if differentiable(leaf))


def _usable(leaf: Any) -> Any:
    """Return a leaf for the next step; a tensor of inference mode is cloned."""
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf
