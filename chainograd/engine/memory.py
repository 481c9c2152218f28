"""What a run keeps in memory between its passes: states and graphs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch

from chainograd.engine.kept_attention import KeptAttention
from chainograd.engine.step_graph import AbstractStepGraph
from chainograd.state import State
from chainograd.storage.call_storage import CallStorage, StoredState
from chainograd.storage.kept_tensors import InPlace, Keeper


@dataclass(slots=True, eq=False)
class RunMemory:
    """The nodes and graphs of a run, and how far backward passes have freed them.

    Attributes:
        left: The steps before this one were not freed by a backward pass.
        reached: How far backward passes that freed steps came: the next action, the state there.
        nodes: States that are kept, by the index of the step they enter.
        graphs: Graphs that are kept, by the index of the step.
        storage: Where the nodes live.
        attention: Outputs of attention that reruns are given, by the index of the step.
        keeper: Keeps what graphs that are cut into blocks need.
    """

    left: int
    reached: tuple[int, State | None] = (0, None)
    nodes: dict[int, StoredState] = field(default_factory=dict)
    graphs: dict[int, AbstractStepGraph] = field(default_factory=dict)
    storage: CallStorage = field(init=False)
    attention: dict[int, KeptAttention] = field(default_factory=dict)
    keeper: Keeper = field(default_factory=InPlace)

    def keep(self, i: int, state: State) -> None:
        """Keep the state that enters step i."""
        self.nodes[i] = self.storage.put(i, state)

    def can_drop_graphs(self, error: Exception, i: int, nodes: dict[int, StoredState]) -> bool:
        """Return whether step i can go on after an error without the kept graphs.

        Args:
            error: What the step raised: memory ran out, or something else.
            i: The step.
            nodes: The states that are there.
        """
        return bool(self.graphs) and all(j in nodes for j in (*self.graphs, i)) and _is_full(error)

    def drop_graphs(self, i: int) -> None:
        """Free all kept graphs, because memory ran out at step i."""
        count = len(self.graphs)
        self.graphs.clear()
        warnings.warn(
            f"Memory ran out at step {i} with {count} graphs kept. They are dropped, and their "
            "steps will be run again in the backward pass. A smaller `plan` avoids this.",
            stacklevel=2,
        )

    def release(self) -> None:
        """Free everything, and the store's room for it."""
        self.left, self.reached = 0, (0, None)
        self.nodes.clear()
        self.graphs.clear()
        self.attention.clear()
        self.storage.close()


def _is_full(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )
