"""What a step costs in bytes and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepCost:
    """The bytes and seconds that one step costs.

    The peaks (``advance_bytes``, ``record_bytes``, ``backprop_bytes``) do not count stored nodes
    and the graphs of other steps.

    Attributes:
        node_bytes: Size of the state that enters the step.
        result_bytes: Size of the state that leaves the step, and of that state's cotangent.
        graph_bytes: What a recorded step holds until its backward pass, besides these two states.
        advance_bytes: Peak while the step runs without a graph.
        record_bytes: Peak while the step runs with its graph.
        backprop_bytes: Peak while the cotangent passes the step, the graph included.
        gradient_bytes: Size of the gradients of the tensors that all steps share.
        forward_seconds: Time to run the step.
        backward_seconds: Time of the step's backward pass.
        stored_bytes: Size of the node on the device, if the store keeps something other than the
            state itself; otherwise None.
        first_backprop_bytes: ``backprop_bytes`` for the first step that the cotangent passes, when
            there are no gradients to add to yet; None if it is the same.
    """

    node_bytes: int
    result_bytes: int
    graph_bytes: int
    advance_bytes: int
    record_bytes: int
    backprop_bytes: int
    gradient_bytes: int = 0
    forward_seconds: float = 1.0
    backward_seconds: float = 1.0
    stored_bytes: int | None = None
    first_backprop_bytes: int | None = None

    @property
    def kept_bytes(self) -> int:
        """Size of the node on the device."""
        return self.node_bytes if self.stored_bytes is None else self.stored_bytes


class Prices(NamedTuple):
    """The costs of all steps as columns, named as in `StepCost`.

    Attributes:
        beside: Size of the state where its node is something else, as in a store; otherwise 0.
        first: ``first_backprop_bytes``, or ``backprop_bytes`` where that is None.
    """

    node: Bytes
    kept: Bytes
    beside: Bytes
    result: Bytes
    graph: Bytes
    advance: Bytes
    record: Bytes
    backprop: Bytes
    first: Bytes
    gradient: Bytes
    forward_seconds: NDArray[np.float64]
    backward_seconds: NDArray[np.float64]

    @classmethod
    def of(cls, costs: Sequence[StepCost]) -> Prices:
        """Return the columns of ``costs``."""
        sizes = np.array([_sizes(cost) for cost in costs], dtype=np.int64)
        seconds = [(cost.forward_seconds, cost.backward_seconds) for cost in costs]
        times = np.array(seconds, dtype=np.float64)
        return cls(*sizes.T.copy(), *times.T.copy())


def _sizes(cost: StepCost) -> tuple[int, ...]:
    first = cost.first_backprop_bytes
    return (
        cost.node_bytes,
        cost.kept_bytes,
        0 if cost.stored_bytes is None else cost.node_bytes,
        cost.result_bytes,
        cost.graph_bytes,
        cost.advance_bytes,
        cost.record_bytes,
        cost.backprop_bytes,
        cost.backprop_bytes if first is None else first,
        cost.gradient_bytes,
    )
