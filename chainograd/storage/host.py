"""Nodes in pinned host memory, copied there and back while the steps run."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from chainograd.state import State
from chainograd.storage.packing import Layout, refuse_unstorable, with_tensors, without_tensors
from chainograd.storage.transfers import Transfers


class HostStorage:
    """Stores states of an accelerator in pinned host memory."""

    in_sight = False

    def __init__(self, transfers: Transfers) -> None:
        self.transfers = transfers
        transfers.begin()

    def put(self, index: int, state: State) -> HostState:
        """Start copying a state to the host.

        Raises:
            StoreError: If the state holds a tensor that cannot be stored there.
        """
        refuse_unstorable(state, "'host'")
        return HostState(state, self.transfers)

    def settle(self) -> None:
        """Do nothing: copies back are queued after copies out."""

    def close(self) -> None:
        """Do nothing: a node that is freed returns its buffers."""


class HostState:
    """A state in pinned host memory.

    Attributes:
        coming: The tensors that are being copied back, and the events at which they are there.
    """

    def __init__(self, state: State, transfers: Transfers) -> None:
        self.transfers = transfers
        self.rest = without_tensors(state)
        self.layouts = [Layout.of(tensor) for tensor in state.tensors]
        pairs = zip(self.layouts, state.tensors, strict=True)
        self.buffers = [transfers.out(layout.packed(tensor)) for layout, tensor in pairs]
        self.coming: tuple[list[Tensor], list[Any]] | None = None
        weakref.finalize(self, _give_back, transfers, self.buffers).atexit = False

    def prefetch(self) -> None:
        """Start copying the state back."""
        if self.coming is None:
            packed = [layout.room() for layout in self.layouts]
            pairs = zip(self.buffers, packed, strict=True)
            self.coming = (packed, [self.transfers.back(b, flat) for b, flat in pairs])

    def load(self) -> State:
        """Return the state; the current stream waits for its copy."""
        self.prefetch()
        assert self.coming is not None
        (packed, events), self.coming = self.coming, None
        for event in events:
            self.transfers.wait(event)
        pairs = zip(self.layouts, packed, strict=True)
        return with_tensors(self.rest, [layout.unpacked(flat) for layout, flat in pairs])


def _give_back(transfers: Transfers, buffers: list[Tensor]) -> None:
    for buffer in buffers:
        transfers.give_back(buffer)
