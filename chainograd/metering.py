"""Peak bytes of live tensors, as a value: exact and repeatable, on a CPU too."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    is_traceable_wrapper_subclass,
)

from chainograd.tensors.devices import allocator_of, indexed, synchronize
from chainograd.tensors.parts import dense_parts, is_plain


class Reading:
    """What a `meter` has seen: bytes of tensors made inside it.

    Attributes:
        peak_bytes: The most that were alive at once.
        live_bytes: Bytes alive now; it goes on falling after the block as tensors die.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.live_bytes = 0
        self._note: Callable[[], None] = _nothing  # brings both up to date, where that is needed
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def lap(self) -> int:
        """Return the peak so far, and let the next one start from what is alive now."""
        self._note()
        peak, self.peak_bytes = self.peak_bytes, self.live_bytes
        return peak

    def _saw(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._alive.get(key)
        if known is not None:
            reference, before = known
        elif key in given:  # a view of, or a change to, something made before the meter
            return
        else:  # torch keeps one Python object a storage, which dies when the storage does
            reference, before = weakref.ref(storage, lambda _: self._lost(key)), 0
        self._alive[key] = (reference, size)
        self.live_bytes += size - before
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _lost(self, key: int) -> None:
        self.live_bytes -= self._alive.pop(key)[1]


def _nothing() -> None:
    pass


class _Follow(TorchDispatchMode):
    """Reports the storages of every operation's result to a reading."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {s._cdata for s in _storages((*args, *kwargs.values()) if kwargs else args)}
        if func is torch.ops.aten.lift_fresh.default:  # torch.tensor(…): its data is new
            given = set()
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            self.reading._saw(storage, given)
        return out


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    # By hand: an operation has a few tensors and lists of them, for which pytree is slow.
    if isinstance(value, Tensor):
        if is_plain(value):
            yield value.untyped_storage()
        else:
            yield from storages(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _storages(item)


def storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """Yield the storages that a tensor of any kind lives in; oneDNN's has none to follow."""
    if tensor.layout is torch.strided and not is_traceable_wrapper_subclass(tensor):
        yield tensor.untyped_storage()  # parts of a quantized one would be copies
    elif tensor.layout is not torch._mkldnn:  # pyright: ignore[reportAttributeAccessIssue]
        for part in dense_parts(tensor):
            yield part.untyped_storage()


@contextmanager
def meter(device: torch.device | str | None = None) -> Iterator[Reading]:
    """Count the bytes of tensors made in a block: storages, so that views cost nothing.

    On CUDA, and on every accelerator whose allocator tells its peak, that peak is read. Elsewhere,
    and for fake tensors, every operation's result is followed until its storage dies, whether
    Python or autograd's graph held it; memory that a kernel uses inside one operation is not seen,
    and every operation takes a little longer.

    Args:
        device: Where the tensors are; by default torch's default device.

    Yields:
        The reading; ``peak_bytes`` and ``live_bytes`` may be read at any time, where an
        allocator is asked after the block.

    Example:
        >>> with meter() as reading:
        ...     x = torch.zeros(256)
        ...     y = x[:10] + 1
        >>> reading.peak_bytes
        1064
    """
    place = torch.get_default_device() if device is None else torch.device(device)
    reading = Reading()
    allocator = None if _faking() else allocator_of(place)
    if allocator is not None:
        with _allocator_peak(reading, indexed(place), allocator):
            yield reading
    else:
        with _Follow(reading):
            yield reading


def _faking() -> bool:
    """Return whether tensors made now are fake, of which an allocator knows nothing."""
    return any(isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack())


# The allocator has one peak a device, and a nested meter resets it: each meter that is open keeps
# its own maximum. Entries: reading, device, bytes allocated at entry.
_open: list[tuple[Reading, torch.device, int]] = []


@contextmanager
def _allocator_peak(reading: Reading, device: torch.device, allocator: Any) -> Iterator[None]:
    _note_peaks(device, allocator)
    entry = (reading, device, allocator.memory_allocated(device))
    _open.append(entry)
    reading._note = partial(_note_peaks, device, allocator)
    try:
        yield
    finally:
        _note_peaks(device, allocator)
        _open.remove(entry)
        reading._note = _nothing


def _note_peaks(device: torch.device, allocator: Any) -> None:
    synchronize(device)
    peak = allocator.max_memory_allocated(device)
    for reading, place, at_entry in _open:
        if place == device:
            reading.peak_bytes = max(reading.peak_bytes, peak - at_entry)
            reading.live_bytes = allocator.memory_allocated(device) - at_entry
    allocator.reset_peak_memory_stats(device)
