"""What all steps of a call share besides the state: arguments, and tensors that they capture."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from chainograd.captured.fsdp import is_shard, trainable
from chainograd.state import State, detached_leaf, wants_gradient


@dataclass(slots=True, eq=False)
class SharedTensors:
    """The arguments and captured tensors of one call, outside the steps and inside them.

    A step sees a stand-in in place of every tensor that has a graph: note [Stand-ins]. A *place*
    is the index of a tensor in `inside` and in `outside`.

    Attributes:
        arguments: Extra arguments and keyword arguments, flattened, as the caller passed them.
        captured: Tensors requiring a gradient that the steps reach without being passed them.
        routes: Where the gradients of the captured tensors go, one each: to the tensor itself, or
            inside a step of another chain to what stands in for it there.
        sharded: Modules that FSDP2 shards.
        trains_shards: Whether gradients of sharded parameters are wanted.
        inner_arguments: The arguments as the steps see them.
        inner_captured: The captured tensors as the steps see them.
        inside: Every tensor that the steps share and that requires a gradient, as they see it.
        places: The place of each tensor of `inside`, by its id.
        stand_ins: What stands in for captured tensors, by their ids.
    """

    arguments: State
    captured: list[Tensor]
    routes: list[Tensor]
    sharded: list[Any]
    trains_shards: bool = field(init=False)
    inner_arguments: State = field(init=False)
    inner_captured: list[Tensor] = field(init=False)
    inside: list[Tensor] = field(init=False)
    places: dict[int, int] = field(init=False)
    stand_ins: dict[int, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.inner_arguments = self.arguments._replace(
            leaves=tuple(
                detached_leaf(leaf) if wants_gradient(leaf) else leaf
                for leaf in self.arguments.leaves
            )
        )
        self.trains_shards = any(map(trainable, self.sharded))
        # A leaf is used as it is: note [Stand-ins].
        self.inner_captured = [
            detached_leaf(tensor)
            if not tensor.is_leaf or (self.trains_shards and not is_shard(tensor))
            else tensor
            for tensor in self.routes
        ]
        self._note_places()

    def _note_places(self) -> None:
        arguments = [leaf for leaf in self.inner_arguments.leaves if wants_gradient(leaf)]
        self.inside = arguments + self.inner_captured
        self.places = {id(tensor): place for place, tensor in enumerate(self.inside)}
        pairs = zip(self.captured, self.inner_captured, strict=True)
        self.stand_ins = {id(outer): inner for outer, inner in pairs if outer is not inner}

    @property
    def outside(self) -> list[Tensor]:
        """The tensors that gradients are returned for."""
        return [leaf for leaf in self.arguments.leaves if wants_gradient(leaf)] + self.routes

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors outside that steps can reach, those that require no gradient too."""
        return [*self.arguments.tensors, *self.captured]

    def ids(self, places: Iterable[int]) -> set[int]:
        """Return the ids of the tensors at some places, as the caller has them."""
        shared = [*filter(wants_gradient, self.arguments.leaves), *self.captured]
        return {id(shared[place]) for place in places}

    def forget_unused(self, used: set[int]) -> None:
        """Release captured tensors with a graph that no step uses: what an earlier call left.

        The stand-in takes the tensor's place, so that nothing here holds the tensor's graph.

        Args:
            used: Places of the tensors that steps use.
        """
        count = len(self.inside) - len(self.captured)
        for place, route in enumerate(self.routes):
            if not route.is_leaf and count + place not in used:
                self.captured[place] = self.routes[place] = self.inner_captured[place]
        self._note_places()

    def replaced(self, others: dict[int, Tensor]) -> SharedTensors:
        """Return the same with other tensors inside the steps, at the places that are given."""
        shared = copy.copy(self)
        coming = iter([others.get(place, tensor) for place, tensor in enumerate(self.inside)])
        shared.inner_arguments = self.arguments._replace(
            leaves=tuple(next(coming) if wants_gradient(t) else t for t in self.arguments.leaves)
        )
        shared.inner_captured = list(coming)
        shared._note_places()
        return shared
