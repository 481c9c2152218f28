"""What a run of a step returns, and what the step's graph tells."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from chainograd.captured.fsdp import gathered
from chainograd.engine.accumulate import Uses
from chainograd.engine.first_run import Guard, kept_by
from chainograd.engine.graph import Mark, leaves_used
from chainograd.engine.shared import SharedTensors
from chainograd.engine.step_graph import StepGraph
from chainograd.engine.unknown_leaves import UnknownLeaf, refuse_unknown_leaves
from chainograd.errors import ChainError
from chainograd.replay.signature import Signature, signature
from chainograd.state import State, wants_gradient


@dataclass(slots=True, eq=False)
class StepResult:
    """What a run of a step returns.

    Attributes:
        leaving: The state that the step returned, outside its graph.
        wanted: Which leaves of that state need a gradient.
        used: Places of the tensors that the steps share which are in the step's graph.
        signature: What that graph was like; None if there was no graph, or if it varies.
        entered: How often the graph uses the leaves of the state before it, by their places.
        aliases: Leaves of the state, by their places, that are tensors from elsewhere.
        graph: The graph, if it was to be kept.
    """

    leaving: State
    wanted: list[bool]
    used: set[int]
    signature: Signature | None
    entered: dict[int, int]
    aliases: dict[int, Alias]
    graph: StepGraph | None = None

    def discard(self) -> Leftovers:
        """Drop the graph; return what may be alive of it."""
        assert self.graph is not None
        entering, unknown_leaves = self.graph.entering.leaves, self.graph.unknown_leaves
        self.graph = None
        return Leftovers([weakref.ref(t) for t in entering if wants_gradient(t)], unknown_leaves)


class Leftovers(NamedTuple):
    """What may be alive of a graph that was discarded.

    Attributes:
        begun: The leaves that the graph began with.
        unknown_leaves: The leaves in it that the chain does not know.
    """

    begun: list[weakref.ref[Tensor]]
    unknown_leaves: list[UnknownLeaf]

    def refuse(self) -> None:
        """Refuse what the step has captured, and gradients that arrive at what it has kept.

        Raises:
            CapturedTensorError: If a leaf that the chain does not know is still alive.
        """
        if self.unknown_leaves:
            refuse_unknown_leaves(self.unknown_leaves)
        # A leaf that outlives its graph is part of something that the step has kept.
        kept = [leaf for each in self.begun if (leaf := each()) is not None]
        if kept:
            Guard(kept)


class Alias(NamedTuple):
    """Where a tensor that a step returns was met before.

    Attributes:
        entering: Whether that was in the state before the step; else in the state it returns.
        place: The leaf's place in that state.
    """

    entering: bool
    place: int


def trace(
    index: int, entering: State, leaving: State, mark: Mark, shared: SharedTensors, *, signed: bool
) -> StepResult:
    """Return the graph between two states, and what it tells.

    Args:
        index: The step's index.
        entering: The state that the graph begins with.
        leaving: The state that it ends with.
        mark: For the graph's nodes.
        shared: What the steps share.
        signed: Whether the graph has the same nodes in each run.

    Raises:
        ChainError: If the graph leads to the graph of another step, or to one that a block kept.
    """
    uses: Uses = {}
    entered: Uses = {}
    unknown_leaves: list[UnknownLeaf] = []
    places = shared.places
    own = {id(leaf): at for at, leaf in enumerate(entering.leaves) if wants_gradient(leaf)}
    wanted = [wants_gradient(leaf) for leaf in leaving.leaves]
    found, nodes = leaves_used(leaving.leaves, mark)
    for use in found:
        leaf = use[0]
        if (at := places.get(id(leaf))) is not None:
            uses.setdefault(at, []).append(use)
        elif (at := own.get(id(leaf))) is not None:
            entered.setdefault(at, []).append(use)
        elif all(leaf is not part for part in gathered(shared.sharded)):
            if (block := kept_by(leaf)) is not None:
                raise _kept_by_block(index, block)
            unknown_leaves.append(UnknownLeaf(index, tuple(leaf.shape), weakref.ref(leaf)))
    return StepResult(
        leaving.detached(),
        wanted,
        # Of shards the graph does not tell which it uses.
        set(range(len(places))) if shared.sharded else set(uses),
        signature(nodes) if signed and not shared.sharded else None,
        {place: len(each) for place, each in entered.items()},
        _aliases(own, leaving.leaves, wanted),
        StepGraph(entering, leaving, uses, entered, unknown_leaves),
    )


def _kept_by_block(index: int, block: str) -> ChainError:
    return ChainError(
        f"Step {index} uses a tensor that the {block} computed and kept, outside of what the block "
        "returns, so its gradient would be lost. Return the tensor from the block, or leave the "
        "block out of the chain's `blocks`; if its gradient is not wanted, keep `tensor.detach()`."
    ).in_step(index)


def _aliases(own: dict[int, int], leaves: Sequence[Any], wanted: list[bool]) -> dict[int, Alias]:
    """Return the leaves that are tensors from elsewhere; ``own`` has the entering leaves' ids."""
    met: dict[int, int] = {}
    aliases: dict[int, Alias] = {}
    for place, leaf in enumerate(leaves):
        if wanted[place]:
            if id(leaf) in own:
                aliases[place] = Alias(True, own[id(leaf)])
            elif met.setdefault(id(leaf), place) != place:
                aliases[place] = Alias(False, met[id(leaf)])
    return aliases
