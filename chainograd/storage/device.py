"""Nodes on the device: the states themselves."""

from __future__ import annotations

from dataclasses import dataclass

from chainograd.errors import ChangedTensorError
from chainograd.state import State, versions


@dataclass(slots=True)
class DeviceState:
    """A state that is stored as it is, with its tensors' versions at that time."""

    index: int
    state: State
    versions: list[int]

    def load(self) -> State:
        """Return the state.

        Raises:
            ChangedTensorError: If a tensor was changed in place since it was stored.
        """
        if self.versions != versions(self.state.leaves):
            raise ChangedTensorError(
                f"The state that enters step {self.index} was changed in place after the forward "
                "pass, so the gradient would be wrong. Change a copy of the state instead."
            )
        return self.state

    def prefetch(self) -> None:
        """Do nothing: the state is there."""


class DeviceStorage:
    """Stores states as they are."""

    in_sight = True

    def put(self, index: int, state: State) -> DeviceState:
        """Store a state."""
        return DeviceState(index, state, versions(state.leaves))

    def settle(self) -> None:
        """Do nothing: a state is stored at once."""

    def close(self) -> None:
        """Do nothing: a state is freed at once."""
