"""Gradients of recorded steps: what one backward pass computes them under, and with what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from chainograd.captured.fsdp import gathered, gradients_by_accumulation
from chainograd.engine.accumulate import GradAccumulator, Uses
from chainograd.engine.first_run import Guard
from chainograd.engine.hooks import without_hooks
from chainograd.engine.shared import SharedTensors
from chainograd.errors import ChangedTensorError
from chainograd.replay.autocast import OwnAutocast
from chainograd.state import Cotangents, State, wants_gradient
from chainograd.tensors.parts import is_plain
from chainograd.torch_internals.autograd import hooks_of, run_backward


class Recorded(Protocol):
    """A graph between two states, as `Vjp` needs it."""

    entering: State
    leaving: State
    uses: Uses
    guard: Guard | None


class Vjp:
    """Vector-Jacobian products of steps, in one backward pass.

    Args:
        shared: What the steps share.

    Attributes:
        shared: What the steps share.
        hooked: Captured tensors that have hooks.
        autocast: Autocast as it is where ``backward()`` was called.
    """

    def __init__(self, shared: SharedTensors) -> None:
        self.shared = shared
        self.hooked = [tensor for tensor in shared.inner_captured if hooks_of(tensor)]
        self.autocast = OwnAutocast({tensor.device.type for tensor in shared.tensors} | {"cpu"})

    def __call__(
        self, graph: Recorded, after: Cotangents, before: Cotangents, accumulator: GradAccumulator
    ) -> Cotangents:
        """Send cotangents back through a recorded step, and add up what the steps share.

        Args:
            graph: The step's graph.
            after: Cotangents of the state that left the step.
            before: Cotangents that the state which entered it has from elsewhere.
            accumulator: Gradients so far; the step's are added to them.

        Returns:
            The cotangents of the state that entered the step.
        """
        entering, leaving = graph.entering.leaves, graph.leaving.leaves
        places = [place for place, leaf in enumerate(entering) if wants_gradient(leaf)]
        roots = [(leaving[p], g) for p, g in after.items() if leaving[p].requires_grad]
        # As in note [Sums in order], 1: a node that a loss looks at too.
        if before:
            roots += [(entering[p], g) for p, g in before.items() if entering[p].requires_grad]
        uses = self._all_shared if self.shared.trains_shards else graph.uses
        asked = accumulator.ask(uses, self.shared.inside)
        if not roots or not (places or asked.places):
            return {}
        outputs, cotangents = zip(*roots, *asked.roots, strict=True)
        inputs = (*[entering[place] for place in places], *asked.leaves)
        if graph.guard is None:
            grads = self._gradients(outputs, inputs, cotangents)
        else:
            with graph.guard:
                grads = self._gradients(outputs, inputs, cotangents)
        accumulator.take(asked, grads[len(places) :], uses)
        found = {p: g for p, g in zip(places, grads, strict=False) if g is not None}
        for place, g in found.items():
            if is_plain(g):  # else it may be a batch of gradients
                entering[place].grad = g  # for a step that keeps its state to look at it
        return found

    @property
    def _all_shared(self) -> Uses:
        """Uses that make a sum of every tensor a root: of shards the graph does not tell them."""
        return {at: [(leaf, None, 0)] * 2 for at, leaf in enumerate(self.shared.inside)}

    def _gradients(
        self,
        outputs: tuple[Tensor, ...],
        inputs: tuple[Tensor, ...],
        cotangents: tuple[Tensor, ...],
    ) -> Sequence[Tensor | None]:
        if self.shared.trains_shards:
            trained = [t for t in gathered(self.shared.sharded) if t.requires_grad]
            return gradients_by_accumulation(outputs, inputs, cotangents, trained)
        try:
            if not self.hooked and not self.autocast.states:
                return run_backward(outputs, cotangents, False, False, inputs)
            with without_hooks(self.hooked), self.autocast.on():
                return run_backward(outputs, cotangents, False, False, inputs)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise ChangedTensorError(
                "A tensor that a step uses, a weight or a part of its state, was changed in place "
                "after the step ran, so its gradient cannot be computed. Call `backward()` before "
                f"`optimizer.step()` and other in-place changes. ({str(error).splitlines()[0]})"
            ) from error
