"""Where kept states live: on their device, in pinned host memory, or in a folder.

A store makes a storage for each call of a chain. The storage turns a state into a node. The node
brings the state back, and frees what it holds when the node itself is freed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from chainograd.errors import ChangedTensorError
from chainograd.state import State, versions
from chainograd.storage.disk import DiskStorage
from chainograd.storage.host import HostStorage, Transfers
from chainograd.storage.packing import Layout, refuse_kinds
from chainograd.tensors.devices import is_accelerator
from chainograd.tensors.parts import is_plain, tensor_bytes


class StoredState(Protocol):
    """A kept state."""

    def load(self) -> State:
        """Return the state, on its device."""
        ...

    def prefetch(self) -> None:
        """Begin to bring the state back, if that takes time."""
        ...


class CallStorage(Protocol):
    """Where the nodes of one call are kept.

    Attributes:
        in_sight: Whether a kept state can be looked at without bringing it back.
    """

    in_sight: bool

    def put(self, index: int, state: State) -> StoredState:
        """Keep the state that enters step ``index``."""
        ...

    def settle(self) -> None:
        """Return when everything put so far is kept; raise if something could not be."""
        ...

    def close(self) -> None:
        """Return when nothing is left of the nodes; none is put or loaded any more."""
        ...


@dataclass(frozen=True)
class Store:
    """Where a chain keeps its nodes, and in what precision.

    Args:
        place: ``"device"`` keeps states as they are. ``"host"`` copies those of an accelerator
            (CUDA, ROCm, XPU, NPU, …) to pinned host memory on a stream of its own, and begins to
            bring each back before it is needed; states on a CPU stay as they are. A folder (a
            `pathlib.Path`, or text with a slash in it) keeps them in files, written and read by a
            thread; they are removed when the gradient is there, after an exception, and when the
            result is let go. Both keep plain strided tensors, with their strides, and refuse
            sparse, nested and quantized tensors and subclasses.
        dtype: A floating dtype to keep states in, such as ``torch.bfloat16``. Steps then run
            again from rounded states: half the memory, and gradients that are **not exact**. None
            keeps every bit.

    Raises:
        ValueError: If there is no such place, or the dtype is not a floating one.

    Example:
        >>> Store("./nodes").elsewhere(torch.device("cpu"))
        True
    """

    place: str | os.PathLike[str] = "device"
    dtype: torch.dtype | None = None
    _transfers: dict[torch.device, Transfers] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not isinstance(self.place, (str, os.PathLike)) or (
            isinstance(self.place, str)
            and self.place not in ("device", "host")
            and not _looks_like_a_folder(self.place)
        ):
            raise ValueError(
                f"`store` must be 'device', 'host' or a folder, got {self.place!r}. Write a folder "
                "as a pathlib.Path, or with a slash: './nodes'."
            )
        if self.dtype is not None and not (
            isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point
        ):
            raise ValueError(
                f"`dtype` of a store must be a floating dtype such as torch.bfloat16, or None to "
                f"keep every bit, got {self.dtype!r}."
            )

    def elsewhere(self, device: torch.device) -> bool:
        """Return whether states of a device are kept in other memory than the device's."""
        return self.place != "device" and (self.place != "host" or is_accelerator(device))

    def stored_bytes(self, state: State) -> int | None:
        """Return what a kept state takes on its device, or None if that is the state itself."""
        if any(self.elsewhere(leaf.device) for leaf in state.tensors):
            return 0
        if self.dtype is None:
            return None
        return sum(_rounded_bytes(leaf, self.dtype) for leaf in state.tensors)

    def storage(self, x_T: State, count: Callable[[], int]) -> CallStorage:
        """Return a storage for states like ``x_T``; ``count`` says how many at once.

        Raises:
            StoreError: If the folder cannot be written to, or has no room for them, or the state
                holds tensors of a kind that cannot be kept there.
        """
        device = x_T.device
        if not self.elsewhere(device):
            storage: CallStorage = _DEVICE
        elif self.place == "host":
            refuse_kinds(x_T, "'host'")
            if device not in self._transfers:
                self._transfers[device] = Transfers(device)
            storage = HostStorage(self._transfers[device])
        else:
            storage = DiskStorage(Path(self.place), x_T, count())
        return storage if self.dtype is None else RoundingStorage(storage, self.dtype)


def _looks_like_a_folder(place: str) -> bool:
    return os.sep in place or "/" in place or Path(place).is_dir()


# On the device: the state itself


@dataclass(slots=True)
class DeviceState:
    """A state that is kept as it is."""

    index: int
    state: State
    versions: list[int]

    def load(self) -> State:
        """Return the state, which must be as it was.

        Raises:
            ChangedTensorError: If it was changed in place.
        """
        if self.versions != versions(self.state.leaves):
            raise ChangedTensorError(
                f"The state that enters step {self.index} was changed in place after the forward "
                "pass, so the gradient would be that of another chain. Change a copy of it instead."
            )
        return self.state

    def prefetch(self) -> None:
        """Do nothing: the state is there."""


class DeviceStorage:
    """Keeps states as they are."""

    in_sight = True

    def put(self, index: int, state: State) -> DeviceState:
        """Keep a state."""
        return DeviceState(index, state, versions(state.leaves))

    def settle(self) -> None:
        """Do nothing: a state is kept at once."""

    def close(self) -> None:
        """Do nothing: a state is freed at once."""


_DEVICE = DeviceStorage()


# In fewer bits


# What a leaf was before it was rounded: its layout, its dtype if it is not plain, None if it is
# kept in full.
Rounded = Layout | torch.dtype | None


class RoundingStorage:
    """Keeps states rounded to a dtype, on another storage."""

    in_sight = False

    def __init__(self, storage: CallStorage, dtype: torch.dtype) -> None:
        self.storage, self.dtype = storage, dtype

    def put(self, index: int, state: State) -> RoundedState:
        """Keep a state, rounded."""
        pairs = [self._rounded(leaf) for leaf in state.leaves]
        kept = state._replace(leaves=tuple(leaf for leaf, _ in pairs))
        return RoundedState(self.storage.put(index, kept), [was for _, was in pairs])

    def _rounded(self, leaf: Any) -> tuple[Any, Rounded]:
        """Return what is kept of a leaf, and what it was."""
        if not isinstance(leaf, Tensor) or _kept_dtype(leaf, self.dtype) == leaf.dtype:
            return leaf, None
        if not is_plain(leaf):
            return leaf.to(self.dtype), leaf.dtype
        layout = Layout.of(leaf)  # else strides of dimensions of size 1, or of gaps, would be lost
        return layout.packed(leaf).to(self.dtype), layout

    def settle(self) -> None:
        """Wait for the other storage."""
        self.storage.settle()

    def close(self) -> None:
        """Wait for the other storage."""
        self.storage.close()


@dataclass(slots=True)
class RoundedState:
    """A state that is kept in fewer bits."""

    node: StoredState
    rounded: Sequence[Rounded]

    def load(self) -> State:
        """Return the rounded state in its own dtypes."""
        state = self.node.load()
        return state._replace(leaves=tuple(map(_restored, state.leaves, self.rounded)))

    def prefetch(self) -> None:
        """Begin to bring the state back."""
        self.node.prefetch()


def _restored(kept: Any, was: Rounded) -> Any:
    """Return a leaf in its own dtype and with its own strides."""
    if was is None:
        return kept
    return kept.to(was) if isinstance(was, torch.dtype) else was.unpacked(kept.to(was.dtype))


def _rounded_bytes(leaf: Tensor, dtype: torch.dtype) -> int:
    kept = _kept_dtype(leaf, dtype)
    if kept == leaf.dtype or not is_plain(leaf):
        return tensor_bytes(leaf) * kept.itemsize // leaf.element_size()
    return Layout.of(leaf).count * kept.itemsize


def _kept_dtype(leaf: Tensor, dtype: torch.dtype) -> torch.dtype:
    return (
        dtype if leaf.is_floating_point() and leaf.element_size() > dtype.itemsize else leaf.dtype
    )
