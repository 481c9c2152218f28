"""What every storage offers: nodes are put in during a call, and loaded in its backward pass.

A `Store` makes one storage for each call of a chain. The storage turns a state into a node. The
node returns the state, and frees its memory or file when the node itself is freed.
"""

from __future__ import annotations

from typing import Protocol

from chainograd.state import State


class StoredState(Protocol):
    """A node."""

    def load(self) -> State:
        """Return the state, on its device."""
        ...

    def prefetch(self) -> None:
        """Start loading the state, if that takes time."""
        ...


class CallStorage(Protocol):
    """The nodes of one call.

    Attributes:
        in_sight: Whether a node is the state itself, so that it can be read without loading.
    """

    in_sight: bool

    def put(self, index: int, state: State) -> StoredState:
        """Store the state that enters step ``index``."""
        ...

    def settle(self) -> None:
        """Wait until all states are stored; raise if a state could not be stored."""
        ...

    def close(self) -> None:
        """Wait until nothing is left of the nodes. Nothing is put or loaded afterwards."""
        ...
