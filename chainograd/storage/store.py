"""`Store`: where a chain keeps its nodes, and in what precision."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from chainograd.metering import storages
from chainograd.state import State
from chainograd.storage.call_storage import CallStorage
from chainograd.storage.device import DeviceStorage
from chainograd.storage.disk import DiskStorage
from chainograd.storage.host import HostStorage
from chainograd.storage.kept_tensors import InPlace, Keeper
from chainograd.storage.packing import refuse_unstorable
from chainograd.storage.paged import Paged
from chainograd.storage.rounding import RoundingStorage, rounded_bytes
from chainograd.storage.transfers import Transfers
from chainograd.tensors.devices import is_accelerator
from chainograd.torch_internals.tensors import storage_id

_DEVICE = DeviceStorage()


@dataclass(frozen=True)
class Store:
    """Where a chain keeps its nodes, and in what precision.

    Args:
        place: ``"device"`` keeps states as they are. ``"host"`` copies states of an accelerator
            (CUDA, ROCm, XPU, NPU, …) to pinned host memory on a separate stream, and starts to copy
            each back before it is needed; states on a CPU stay as they are. A folder (a
            `pathlib.Path`, or text with a slash) keeps states in files, which a thread writes and
            reads. The files are removed after the backward pass, after an exception, and when the
            result is freed. Host memory and folders hold plain strided tensors, with their
            strides; sparse, nested and quantized tensors and tensor subclasses are refused.
        dtype: A floating dtype to store states in, such as ``torch.bfloat16``. Steps then run
            again from rounded states: half the memory, and gradients that are **not exact**. None
            keeps every bit.

    Raises:
        ValueError: If there is no such place, or the dtype is not a floating dtype.

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
        if not _is_place(self.place):
            raise ValueError(
                f"`store` must be 'device', 'host' or a folder, got {self.place!r}. Write a folder "
                "as a pathlib.Path, or with a slash: './nodes'."
            )
        if self.dtype is not None and not (
            isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point
        ):
            raise ValueError(
                "`dtype` of a store must be a floating dtype such as torch.bfloat16, or None to "
                f"keep every bit, got {self.dtype!r}."
            )

    def elsewhere(self, device: torch.device) -> bool:
        """Return whether states of a device are stored in other memory than the device's."""
        return self.place != "device" and (self.place != "host" or is_accelerator(device))

    def stored_bytes(self, state: State) -> int | None:
        """Return a node's bytes on its device, or None if the node is the state itself."""
        if any(self.elsewhere(leaf.device) for leaf in state.tensors):
            return 0
        if self.dtype is None:
            return None
        return sum(rounded_bytes(leaf, self.dtype) for leaf in state.tensors)

    def storage(self, x_T: State, count: Callable[[], int]) -> CallStorage:
        """Return a storage for nodes like ``x_T``.

        Args:
            x_T: A state of the chain.
            count: Returns the most nodes that there will be at once.

        Raises:
            StoreError: If the folder cannot be written to or has too little room, or if the state
                holds tensors that cannot be stored there.
        """
        storage = self._storage(x_T, count)
        return storage if self.dtype is None else RoundingStorage(storage, self.dtype)

    def keeper(self, storage: CallStorage, device: torch.device, here: Iterable[Tensor]) -> Keeper:
        """Return what keeps tensors of graphs in a storage of this store.

        Args:
            storage: The storage, from `storage`.
            device: The device of the tensors.
            here: Tensors that stay on the device.
        """
        if not self.elsewhere(device):
            return InPlace()
        whole = storage.storage if isinstance(storage, RoundingStorage) else storage
        return Paged(whole, {storage_id(s) for tensor in here for s in storages(tensor)})

    def _storage(self, x_T: State, count: Callable[[], int]) -> CallStorage:
        device = x_T.device
        if not self.elsewhere(device):
            return _DEVICE
        if self.place != "host":
            return DiskStorage(Path(self.place), x_T, count())
        refuse_unstorable(x_T, "'host'")
        if device not in self._transfers:
            self._transfers[device] = Transfers(device)
        return HostStorage(self._transfers[device])


def _is_place(place: object) -> bool:
    if not isinstance(place, str):
        return isinstance(place, os.PathLike)
    is_folder = os.sep in place or "/" in place or Path(place).is_dir()
    return is_folder or place in ("device", "host")
