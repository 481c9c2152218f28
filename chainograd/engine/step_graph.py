"""The graph of one step, which cotangents are sent back through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from chainograd.engine.accumulate import GradAccumulator, Uses
from chainograd.engine.first_run import Guard
from chainograd.engine.unknown_leaves import UnknownLeaf
from chainograd.engine.vjp import Vjp
from chainograd.state import Cotangents, State


class AbstractStepGraph(Protocol):
    """What cotangents are sent back through.

    Attributes:
        entering: Detached leaves that the graph begins with.
        entered: Where the graph uses these leaves, by their places.
        unknown_leaves: Leaves in the graph that the chain does not know.
    """

    entering: State
    entered: Uses
    unknown_leaves: list[UnknownLeaf]

    def send_back(self, after: Cotangents, accumulator: GradAccumulator, vjp: Vjp) -> Cotangents:
        """Send the cotangents of the state that left the step through it.

        Args:
            after: The cotangents.
            accumulator: Gradients so far of what the steps share; the step's are added to them.
            vjp: Computes gradients in this backward pass.

        Returns:
            The cotangents of the state that entered the step.
        """
        ...


@dataclass(slots=True, eq=False)
class StepGraph:
    """A step's graph.

    Attributes:
        entering: Detached leaves that it begins with.
        leaving: The state that it ends with.
        uses: Where it uses the tensors that the steps share, by their places.
        entered: Where it uses the entering leaves, by their places.
        unknown_leaves: Leaves that the chain does not know. A step may make leaves of its own.
        guard: Refuses gradients that do not come from the chain, if the graph is kept for long.
    """

    entering: State
    leaving: State
    uses: Uses
    entered: Uses
    unknown_leaves: list[UnknownLeaf]
    guard: Guard | None = None

    def send_back(self, after: Cotangents, accumulator: GradAccumulator, vjp: Vjp) -> Cotangents:
        """Send the cotangents of the state that left the step through it."""
        return vjp(self, after, {}, accumulator)
