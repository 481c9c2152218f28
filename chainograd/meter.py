"""Peak bytes of live tensors, as a value: exact and repeatable, on a CPU too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Reading:
    """What a `meter` has seen: bytes of tensors made inside it.

    Attributes:
        peak_bytes: The most that were alive at once.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._bytes = 0

    @property
    def live_bytes(self) -> int:
        """Bytes alive now."""
        self._sweep()
        return self._bytes

    def _sweep(self) -> None:
        for key, (reference, size) in list(self._alive.items()):
            if reference.expired():
                del self._alive[key]
                self._bytes -= size

    def _saw(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        known = self._alive.get(key)
        if known is not None and known[0].expired():  # the address is used again
            self._bytes -= known[1]
            del self._alive[key]
            known = None
        size = storage.nbytes()
        if known is None:
            if key in given:  # a view of, or a change to, something made before the meter
                return
            self._alive[key] = (StorageWeakRef(storage), size)
            self._bytes += size
        elif known[1] != size:  # resized
            self._alive[key] = (known[0], size)
            self._bytes += size - known[1]
        # Dead storages are looked for only where they matter: a peak is reached just after
        # something was made, and only if what is alive exceeds the last one.
        if self._bytes > self.peak_bytes:
            self._sweep()
            self.peak_bytes = max(self.peak_bytes, self._bytes)


class _Follow(TorchDispatchMode):
    """Reports the storage of every operation's result to a reading."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            leaf.untyped_storage()._cdata
            for leaf in pytree.tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.reading._saw(leaf.untyped_storage(), given)
        return out


@contextmanager
def meter(device: torch.device | str = "cpu") -> Iterator[Reading]:
    """Count the bytes of tensors made in a block: storages, so that views cost nothing.

    On a CUDA device the allocator's own peak is read. Elsewhere every operation's result is
    followed until its storage dies, whether Python or autograd's graph held it; memory that a
    kernel uses inside one operation is not seen.

    Args:
        device: Where the tensors are.

    Yields:
        The reading; ``peak_bytes`` and ``live_bytes`` may be read at any time, on CUDA after the
        block.

    Example:
        >>> with meter() as reading:
        ...     x = torch.zeros(256)
        ...     y = x[:10] + 1
        >>> reading.peak_bytes
        1064
    """
    reading = Reading()
    if torch.device(device).type != "cuda":
        with _Follow(reading):
            yield reading
        return
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    at_entry = torch.cuda.memory_allocated(device)
    try:
        yield reading
    finally:
        torch.cuda.synchronize(device)
        reading.peak_bytes = torch.cuda.max_memory_allocated(device) - at_entry
        reading._bytes = torch.cuda.memory_allocated(device) - at_entry
