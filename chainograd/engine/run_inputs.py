"""The tensors outside of a run that it returns gradients for."""

from __future__ import annotations

from torch import Tensor

from chainograd.engine.shared import SharedTensors
from chainograd.state import State, wants_gradient


class RunInputs:
    """Tensors outside that a run returns gradients for.

    Attributes:
        tensors: The tensors: leaves of x_T first, then what the steps share.
        of_x_T: The places of the leaves of x_T.
        of_steps: The places of the others among what the steps share.
    """

    def __init__(self, x_T: State, shared: SharedTensors) -> None:
        self.of_x_T = [place for place, leaf in enumerate(x_T.leaves) if wants_gradient(leaf)]
        self.of_steps = list(range(len(shared.inside)))
        self.tensors = [x_T.leaves[place] for place in self.of_x_T] + shared.outside

    @property
    def steps_tensors(self) -> list[Tensor]:
        """The tensors that the steps share."""
        return self.tensors[len(self.of_x_T) :]

    def leave_out(self, entered: dict[int, int], used: set[int], shared: SharedTensors) -> None:
        """Leave out the leaves of x_T that step 0 did not enter, and what no step uses."""
        outer = dict(zip(self.of_x_T, self.tensors, strict=False))
        self.of_x_T = [place for place in self.of_x_T if place in entered]
        self.of_steps = sorted(used)
        outside = shared.outside
        self.tensors = [outer[p] for p in self.of_x_T] + [outside[at] for at in self.of_steps]
