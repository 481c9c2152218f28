"""Second derivatives of a trajectory: its steps go back by operations that have a derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainograd.engine.backward import BackwardPass
from chainograd.engine.step_result import StepResult
from chainograd.engine.uses import StateUses, uses_until, watched
from chainograd.state import Cotangents, State, full_view

# Note [Second derivatives of a trajectory]
# A step runs again on its state as the caller sees it, attached to the link before, and on what the
# steps share as it is outside. Its gradient then has the graph that it has in the plain loop, which
# leads to every state by itself. That costs the memory of the plain loop.

Attached = Callable[[Sequence[Any]], Sequence[Tensor]]  # gives values places in the graph


class Gradients(NamedTuple):
    """What a link returns.

    Attributes:
        of_state: For each group of leaves of the state, in the order to add them up in.
        of_steps: Those of what the steps share, if the pass has come to its last link.
    """

    of_state: list[list[Tensor]]
    of_steps: list[Tensor | None]


class SecondDerivative:
    """What one backward pass with ``create_graph=True`` carries on from link to link."""

    def __init__(self, backward: BackwardPass) -> None:
        self.backward, self.run = backward, backward.run
        self.states: dict[int, State] = {}  # that were made again on the way to a later one
        self.accumulator: list[Tensor | None] = [None] * len(self.run.inputs.of_steps)

    def through(self, i: int, given: Cotangents, uses: StateUses, attached: Attached) -> Gradients:
        """Send the cotangents of the state after step i through it."""
        if not given and all(g is None for g in self.accumulator):
            return Gradients([[] for _ in uses.groups], self.accumulator)
        with torch.no_grad():
            state = self._state(i)
        tensors = attached([state.leaves[places[0]] for places in uses.groups])
        entering = [full_view(tensor) for tensor in tensors]
        shared = self._shared()
        leaves = self._run(i, self._entering(state, uses, entering), shared).leaves
        roots = [(leaves[p], g) for p, g in given.items() if leaves[p].requires_grad]
        return self._sent(roots, entering, shared, uses)

    def _sent(
        self,
        roots: list[tuple[Tensor, Tensor]],
        entering: list[Tensor],
        shared: list[Tensor],
        uses: StateUses,
    ) -> Gradients:
        found = uses_until([leaf for leaf, _ in roots], entering)
        seen = [watched(use if count > 1 else [])
                for use, count in zip(found, uses.counts, strict=True)]  # fmt: skip
        apart = [arrived for arrived, _ in seen]
        # As in note [Sums in order], 1.
        roots = roots + [
            (t, g) for t, g in zip(shared, self.accumulator, strict=True) if g is not None
        ]
        asked = [at for at, t in enumerate(shared) if t.requires_grad]
        if not roots or not (entering or asked):
            return Gradients(apart, self.accumulator)
        outputs, cotangents = zip(*roots, strict=True)
        inputs = [*entering, *(shared[at] for at in asked)]
        grads = torch.autograd.grad(
            outputs, inputs, cotangents, create_graph=True, allow_unused=True
        )
        for handle in chain.from_iterable(handles for _, handles in seen):
            handle.remove()
        for at, g in zip(asked, grads[len(entering) :], strict=True):
            self.accumulator[at] = g
        # A whole gradient, where its uses were not told apart.
        whole = {places[0]: g for places, g in zip(uses.groups, grads, strict=False)
                 if g is not None}  # fmt: skip
        return Gradients(uses.parts(whole, apart), self.accumulator)

    def _shared(self) -> list[Tensor]:
        """Return what the steps share, attached to what it is outside.

        Views, not the tensors: to these a graph that goes on from the state leads as well, through
        the links of all steps before, and they would be gone through each time.
        """
        pairs = [(outer, full_view(outer)) for outer in self.run.inputs.steps_tensors]
        return [outer.clone() if view is outer else view for outer, view in pairs]

    def _entering(self, state: State, uses: StateUses, tensors: list[Tensor]) -> State:
        leaves = list(state.entering([False] * len(state.leaves)).leaves)
        for places, tensor in zip(uses.groups, tensors, strict=True):
            for place in places:
                leaves[place] = tensor
        return state._replace(leaves=tuple(leaves))

    def _run(self, i: int, entering: State, shared: list[Tensor]) -> State:
        run, places = self.run, self.run.inputs.of_steps
        step = run.step.replaced(dict(zip(places, shared, strict=True)))
        with run.surroundings.of_rerun(i):
            leaving = step(i, entering)
        used, _ = run.comparison.verifier.graphs.get(i, (set(places), None))
        result = StepResult(leaving.detached(), [], used, None, {}, {})
        run.comparison.same(i, result, self.backward.nodes.get(i + 1))
        return leaving

    def _state(self, i: int) -> State:
        """Return the state that enters step i; states on the way to it are kept for later."""
        start = max(
            j for j in (*self.states, *self.backward.nodes, *self.backward.graphs) if j <= i
        )
        state = self._at_hand(start)
        for j in range(start, i):
            self.states[j] = state
            state = self.backward.reruns.advance(j, state)
        return state

    def _at_hand(self, i: int) -> State:
        if i in self.states:
            return self.states.pop(i)
        if i in self.backward.nodes:
            return self.backward.nodes[i].load()
        return self.backward.graphs[i].entering.detached()
