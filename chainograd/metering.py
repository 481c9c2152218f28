"""Peak bytes of live tensors, as a value: exact and repeatable, also on a CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chainograd.tensors.devices import allocator_of, indexed, is_accelerator, synchronize
from chainograd.tensors.parts import dense_parts, is_plain
from chainograd.torch_internals.modes import LightDispatchMode, makes_fakes
from chainograd.torch_internals.tensors import is_wrapper_subclass, storage_id


class Reading:
    """What a `meter` has counted: the bytes of tensors that were made inside it.

    Attributes:
        peak_bytes: The most bytes that were alive at once.
        live_bytes: The bytes that are alive now. They fall after the block, too, as tensors die.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.live_bytes = 0
        self._note: Callable[[], None] = _nothing  # reads the allocator, if there is one
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def now(self) -> int:
        """Return the bytes that are alive now; on an accelerator this waits for it."""
        self._note()
        return self.live_bytes

    def lap(self) -> int:
        """Return the peak so far, and start the next peak from the bytes that are alive now."""
        self._note()
        peak, self.peak_bytes = self.peak_bytes, self.live_bytes
        return peak

    def _saw(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage_id(storage), storage.nbytes()
        known = self._alive.get(key)
        if known is not None:
            reference, before = known
        elif key in given:  # a view of a tensor from before the meter, or a change to one
            return
        else:  # torch keeps one Python object for each storage, which dies with the storage
            reference, before = weakref.ref(storage, lambda _: self._lost(key)), 0
        self._alive[key] = (reference, size)
        self.live_bytes += size - before
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _lost(self, key: int) -> None:
        self.live_bytes -= self._alive.pop(key)[1]


def _nothing() -> None:
    pass


class _Follow(LightDispatchMode):
    """Tells a reading the storages of every operation's result."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage_id(s) for s in _storages((*args, *kwargs.values()) if kwargs else args)}
        if func is torch.ops.aten.lift_fresh.default:  # torch.tensor(…): the data is new
            given = set()
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            self.reading._saw(storage, given)
        return out


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    # Without pytree, which is slow: an operation has a few tensors and lists of tensors.
    if isinstance(value, Tensor):
        if is_plain(value):
            yield value.untyped_storage()
        else:
            yield from storages(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _storages(item)


def storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """Yield the storages of a tensor of any kind; a oneDNN tensor has no storage to follow."""
    if tensor.layout is torch.strided and not is_wrapper_subclass(tensor):
        yield tensor.untyped_storage()  # parts of a quantized one would be copies
    elif not tensor.is_mkldnn:
        for part in dense_parts(tensor):
            yield part.untyped_storage()


@contextmanager
def meter(device: torch.device | str | None = None) -> Iterator[Reading]:
    """Count the bytes of tensors made in a block: storages, so that views cost nothing.

    On CUDA, and on every accelerator whose allocator counts its peak, the peak is read from the
    allocator. On other devices, and for fake tensors, the meter follows the result of every
    operation until its storage dies, whether Python or autograd's graph holds it. It does not see
    memory that a kernel uses inside one operation, and every operation takes a little longer.

    Args:
        device: The device of the tensors; by default torch's default device.

    Yields:
        The reading. Its ``peak_bytes`` and ``live_bytes`` may be read at any time; if an allocator
        counts, after the block.

    Example:
        >>> with meter() as reading:
        ...     x = torch.zeros(256)
        ...     y = x[:10] + 1
        >>> reading.peak_bytes
        1064
    """
    place = torch.get_default_device() if device is None else torch.device(device)
    reading = Reading()
    # An allocator knows nothing of fake tensors.
    allocator = None if makes_fakes() else allocator_of(place)
    if allocator is not None:
        with _allocator_peak(reading, indexed(place), allocator):
            yield reading
    else:
        with _Follow(reading):
            yield reading


@contextmanager
def metered(device: torch.device, *, compiled: bool) -> Iterator[None]:
    """Let compiled code run uncompiled in a block, if a `meter` follows operations on the device.

    Without an allocator that counts, as on a CPU, the meter follows operations, which compiled code
    hides from it. The bytes are then those of the uncompiled code, which needs more.
    """
    if compiled and not is_accelerator(device):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


# An allocator has one peak for each device, and a nested meter resets it. So each open meter keeps
# its own maximum. Entries: the reading, the device, bytes allocated when the meter was opened.
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
