"""What the engine asks of the steps of a call, whether they run whole or slice by slice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from chainograd.engine.graph import Mark
from chainograd.engine.shared import SharedTensors
from chainograd.engine.step_graph import AbstractStepGraph
from chainograd.engine.step_result import StepResult
from chainograd.state import State


class Recording(Enum):
    """What becomes of the graph of a run."""

    KEEP = "keep"  # a gradient will be sent through it
    DISCARD = "discard"  # it is looked at and freed: note [First runs]
    OFF = "off"  # no graph is made: no gradient passes the step


@dataclass(slots=True, eq=False)
class GraphOptions:
    """How graphs of the steps of one call are made.

    Attributes:
        layers: Makes the context in which graphs that save tensors are recorded.
        signed: Whether a step's graph has the same nodes in each run. (TorchScript optimises.)
        saves: Whether discarded graphs save what a step's own gradients need.
        uncut: Steps whose graphs cannot be cut, because they take gradients through their blocks.
    """

    layers: Callable[[], AbstractContextManager[object]] = nullcontext
    signed: bool = True
    saves: bool = False
    uncut: set[int] = field(default_factory=set)


class AbstractCut(Protocol):
    """How the graph of one step is made, if not whole with all that its operations save."""

    def saving(self, options: GraphOptions) -> AbstractContextManager[object]:
        """Return the context that says what a graph saves that is not discarded."""
        ...

    def cutting(
        self, mark: Mark, options: GraphOptions, *, discarded: bool
    ) -> AbstractContextManager[object]:
        """Return the context in which the step runs.

        Args:
            mark: For the nodes of the blocks' graphs.
            options: How graphs are made.
            discarded: Whether the step's graph is discarded.
        """
        ...


class ReplayHooks(NamedTuple):
    """What goes with running a step again.

    Attributes:
        around: The context it runs in; entered for each slice of a step that runs slice by slice.
        check: Compares the result with the first run's.
        mark: For the nodes of its graph.
        cut: How the graph is cut into blocks; None if it is whole.
    """

    around: AbstractContextManager[object]
    check: Callable[[StepResult], None]
    mark: Mark
    cut: AbstractCut | None = None


class AbstractStep(Protocol):
    """The steps of one call, with all that they see besides the state.

    Attributes:
        function: The user's step.
        num_steps: M.
        shared: What the steps share.
        options: How their graphs are made.
    """

    function: Callable[..., Any]
    num_steps: int
    shared: SharedTensors
    options: GraphOptions

    def __call__(self, index: int, state: State) -> State:
        """Return what the user's step returns, in the grad mode that is in force."""
        ...

    def run(
        self,
        index: int,
        state: State,
        wanted: list[bool] | None,
        mark: Mark,
        *,
        record: Recording = Recording.KEEP,
        rewind: Callable[[], None] | None = None,
        cut: AbstractCut | None = None,
    ) -> StepResult:
        """Run a step between leaves of its own.

        Args:
            index: The step.
            state: The state that enters it.
            wanted: Which leaves of the state need a gradient; None if the state says so itself.
            mark: For the nodes of the graph.
            record: What becomes of the graph.
            rewind: Undoes what a run of the step has changed (random streams, buffers), so that
                a step which needs what its graph saves can run once more.
            cut: How the graph is cut into blocks; None if it is whole.

        Raises:
            NeedsSavedError: If the step must run once more, and there is no ``rewind``.
        """
        ...

    def rerun(
        self, index: int, state: State, wanted: list[bool], hooks: ReplayHooks
    ) -> AbstractStepGraph:
        """Return the graph of a step that runs again."""
        ...

    def replaced(self, others: dict[int, Tensor]) -> AbstractStep:
        """Return the same steps, with other tensors in some places of what they share."""
        ...
