"""States of an accelerator in pinned host memory, copied there and back beside the steps."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainograd.state import State
from chainograd.storage.packing import Layout, refuse_kinds, with_tensors, without_tensors
from chainograd.tensors.devices import module_of, pinned, unpin_unused

# Note [One side stream]
# 1. All copies, out and back, are queued on one side stream, so none overtakes another: a host
#    buffer that is taken again is not written before an earlier copy has read it.
# 2. The current stream is asked for before the side stream is entered: inside, it would be the
#    side stream itself, and nobody would wait for the steps.
# 3. The side stream waits for the current one before each copy: on the way out the steps must have
#    written the state, on the way back they must be done with whatever had that memory before.
# 4. Device memory belongs to the current stream's pool and is used on the side stream, so the
#    allocator is told (`record_stream`): it may be freed at any time, also after an exception.
# 5. The steps wait for a copy's event only when they need what it brings.
# 6. A device without streams (MPS, where all memory is the host's) copies in its one queue, and
#    the host waits.

# Note [Spare buffers]
# Pinned memory is slow to ask for, so buffers are taken again and again. It is also memory that
# nobody else can use, so only sizes that the call at hand uses stay: a buffer of another size goes
# when a new one must be made, or as soon as it is given back. Torch, which keeps such buffers in
# turn, is asked to return them when the next call begins, and not from a finalizer.


class Transfers:
    """Copies out to the host and back, for one device.

    Args:
        device: The accelerator.
        module: Where streams come from: torch's module for the device, or what stands for it.
        allocate: Makes a host buffer of a number of elements and a dtype.

    Attributes:
        spare: Buffers that wait to be taken again, by number of elements and dtype.
    """

    def __init__(
        self,
        device: torch.device,
        module: Any = None,
        allocate: Callable[..., Tensor] = pinned,
    ) -> None:
        self.device, self.allocate = device, allocate
        self.module: Any = module_of(device) if module is None else module
        new_stream = getattr(self.module, "Stream", None)
        self.side: Any = None if new_stream is None else new_stream(device)
        if new_stream is None:
            self.allocate = torch.empty
        self.spare: dict[tuple[int, torch.dtype], list[Tensor]] = defaultdict(list)
        self._used: set[tuple[int, torch.dtype]] = set()
        self._dropped = False

    def __reduce__(self) -> Any:
        """Let copies of a chain have streams and buffers of their own."""
        return Transfers, (self.device,)

    def begin(self) -> None:
        """Begin a call: what none of the last call's states fitted is returned to the system."""
        self._drop_unused()
        self._used = set()
        if self._dropped:
            self._dropped = False
            unpin_unused()

    def out(self, flat: Tensor) -> Tensor:
        """Start copying a one-dimensional tensor to the host; return the buffer."""
        key = flat.numel(), flat.dtype
        self._used.add(key)
        if not self.spare[key]:
            self._drop_unused()  # note [Spare buffers]
            buffer = self.allocate(flat.numel(), dtype=flat.dtype)
        else:
            buffer = self.spare[key].pop()
        self._copy(buffer, flat, on_device=flat)
        return buffer

    def back(self, buffer: Tensor, flat: Tensor) -> Any:
        """Start copying a buffer into a tensor on the device; return the event of its end."""
        return self._copy(flat, buffer, on_device=flat)

    def wait(self, event: Any) -> None:
        """Let the current stream wait for a copy."""
        if event is not None:
            self.module.current_stream(self.device).wait_event(event)

    def give_back(self, buffer: Tensor) -> None:
        """Let a buffer be taken again. A finalizer may call this."""
        key = buffer.numel(), buffer.dtype
        if key in self._used:
            self.spare[key].append(buffer)
        else:
            self._dropped = True

    def _drop_unused(self) -> None:
        for key in [key for key in self.spare if key not in self._used]:
            del self.spare[key]
            self._dropped = True

    def _copy(self, into: Tensor, source: Tensor, *, on_device: Tensor) -> Any:
        if self.side is None:  # note [One side stream], 6
            into.copy_(source)
            return None
        current = self.module.current_stream(self.device)  # note [One side stream], 2
        self.side.wait_stream(current)  # 3
        with self.module.stream(self.side):
            into.copy_(source, non_blocking=True)
            event = self.side.record_event()
        on_device.record_stream(self.side)  # 4
        return event


class HostStorage:
    """Keeps the states of an accelerator in pinned host memory."""

    in_sight = False

    def __init__(self, transfers: Transfers) -> None:
        self.transfers = transfers
        transfers.begin()

    def put(self, index: int, state: State) -> HostState:
        """Start copying a state to the host.

        Raises:
            StoreError: If a tensor of it is of a kind that cannot be kept there.
        """
        refuse_kinds(state, "'host'")
        return HostState(state, self.transfers)

    def settle(self) -> None:
        """Do nothing: copies back come after copies out by themselves."""

    def close(self) -> None:
        """Do nothing: buffers are given back as nodes are let go."""


class HostState:
    """A state in pinned host memory."""

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
        """Return the state; the current stream waits for it."""
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
