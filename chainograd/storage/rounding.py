"""Nodes in fewer bits: states rounded to a smaller dtype, in another storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chainograd.state import State
from chainograd.storage.call_storage import CallStorage, StoredState
from chainograd.storage.packing import Layout
from chainograd.tensors.parts import is_plain, tensor_bytes

# What a leaf was before rounding: its layout if it is plain, otherwise its dtype. None if the leaf
# is stored in full.
Rounded = Layout | torch.dtype | None


class RoundingStorage:
    """Rounds states to a dtype and stores them in another storage."""

    in_sight = False

    def __init__(self, storage: CallStorage, dtype: torch.dtype) -> None:
        self.storage, self.dtype = storage, dtype

    def put(self, index: int, state: State) -> RoundedState:
        """Store a state, rounded."""
        pairs = [self._rounded(leaf) for leaf in state.leaves]
        rounded = state._replace(leaves=tuple(leaf for leaf, _ in pairs))
        return RoundedState(self.storage.put(index, rounded), [was for _, was in pairs])

    def _rounded(self, leaf: Any) -> tuple[Any, Rounded]:
        """Return a leaf as it is stored, and what it was before."""
        if not isinstance(leaf, Tensor) or _stored_dtype(leaf, self.dtype) == leaf.dtype:
            return leaf, None
        if not is_plain(leaf):
            return leaf.to(self.dtype), leaf.dtype
        # A conversion alone would lose gaps, and the strides of dimensions of size 1.
        layout = Layout.of(leaf)
        return layout.packed(leaf).to(self.dtype), layout

    def settle(self) -> None:
        """Wait for the other storage."""
        self.storage.settle()

    def close(self) -> None:
        """Wait for the other storage."""
        self.storage.close()


@dataclass(slots=True)
class RoundedState:
    """A state that is stored in fewer bits."""

    node: StoredState
    rounded: Sequence[Rounded]

    def load(self) -> State:
        """Return the rounded state in its original dtypes."""
        state = self.node.load()
        return state._replace(leaves=tuple(map(_restored, state.leaves, self.rounded)))

    def prefetch(self) -> None:
        """Start loading the state."""
        self.node.prefetch()


def _restored(stored: Any, was: Rounded) -> Any:
    """Return a leaf in its original dtype and with its original strides."""
    if was is None:
        return stored
    return stored.to(was) if isinstance(was, torch.dtype) else was.unpacked(stored.to(was.dtype))


def rounded_bytes(leaf: Tensor, dtype: torch.dtype) -> int:
    """Return how many bytes a leaf takes when rounded to ``dtype``."""
    stored = _stored_dtype(leaf, dtype)
    if stored == leaf.dtype or not is_plain(leaf):
        return tensor_bytes(leaf) * stored.itemsize // leaf.element_size()
    return Layout.of(leaf).count * stored.itemsize


def _stored_dtype(leaf: Tensor, dtype: torch.dtype) -> torch.dtype:
    rounds = leaf.is_floating_point() and leaf.element_size() > dtype.itemsize
    return dtype if rounds else leaf.dtype
