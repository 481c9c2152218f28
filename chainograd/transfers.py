"""States of a CUDA device in pinned host memory, copied there and back beside the steps."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainograd.packing import Layout, dense, flat, with_tensors, without_tensors
from chainograd.states import State

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


def pinned(count: int, *, dtype: torch.dtype) -> Tensor:
    """Return a buffer in pinned host memory."""
    return torch.empty(count, dtype=dtype, pin_memory=True)


class Transfers:
    """Copies out to the host and back, for one device.

    Host buffers are pinned, which is slow to ask for, so they are taken again and again.

    Args:
        device: The CUDA device.
        cuda: Where streams come from: `torch.cuda`, or what stands for it in a test.
        allocate: Makes a host buffer of a number of elements and a dtype.
    """

    def __init__(
        self,
        device: torch.device,
        cuda: Any = torch.cuda,
        allocate: Callable[..., Tensor] = pinned,
    ) -> None:
        self.device, self.cuda, self.allocate = device, cuda, allocate
        self.side = cuda.Stream(device)
        self.spare: dict[tuple[int, torch.dtype], list[Tensor]] = defaultdict(list)

    def out(self, flat: Tensor) -> Tensor:
        """Start copying a one-dimensional tensor to the host; return the buffer."""
        spare = self.spare[flat.numel(), flat.dtype]
        buffer = spare.pop() if spare else self.allocate(flat.numel(), dtype=flat.dtype)
        self._copy(buffer, flat, on_device=flat)
        return buffer

    def back(self, buffer: Tensor, flat: Tensor) -> Any:
        """Start copying a buffer into a tensor on the device; return the event of its end."""
        return self._copy(flat, buffer, on_device=flat)

    def wait(self, event: Any) -> None:
        """Let the current stream wait for a copy."""
        self.cuda.current_stream(self.device).wait_event(event)

    def give_back(self, buffer: Tensor) -> None:
        """Let a buffer be taken again."""
        self.spare[buffer.numel(), buffer.dtype].append(buffer)

    def _copy(self, into: Tensor, source: Tensor, *, on_device: Tensor) -> Any:
        current = self.cuda.current_stream(self.device)  # note [One side stream], 2
        self.side.wait_stream(current)  # 3
        with self.cuda.stream(self.side):
            into.copy_(source, non_blocking=True)
            event = self.side.record_event()
        on_device.record_stream(self.side)  # 4
        return event


class HostShelf:
    """Keeps the states of a CUDA device in pinned host memory."""

    in_sight = False

    def __init__(self, transfers: Transfers) -> None:
        self.transfers = transfers

    def put(self, index: int, state: State) -> HostNode:
        """Start copying a state to the host."""
        return HostNode(state, self.transfers)

    def settle(self) -> None:
        """Do nothing: copies back come after copies out by themselves."""

    def close(self) -> None:
        """Do nothing: buffers are given back as nodes are let go."""


class HostNode:
    """A state in pinned host memory."""

    def __init__(self, state: State, transfers: Transfers) -> None:
        self.transfers = transfers
        tensors = [dense(leaf) for leaf in state.tensors]
        self.rest = without_tensors(state)
        self.layouts = [Layout.of(tensor) for tensor in tensors]
        self.buffers = [transfers.out(flat(tensor)) for tensor in tensors]
        self.coming: tuple[list[Tensor], list[Any]] | None = None
        weakref.finalize(self, _give_back, transfers, self.buffers).atexit = False

    def prefetch(self) -> None:
        """Start copying the state back."""
        if self.coming is None:
            tensors = [layout.empty() for layout in self.layouts]
            pairs = zip(self.buffers, tensors, strict=True)
            self.coming = (tensors, [self.transfers.back(b, flat(t)) for b, t in pairs])

    def load(self) -> State:
        """Return the state; the current stream waits for it."""
        self.prefetch()
        assert self.coming is not None
        (tensors, events), self.coming = self.coming, None
        for event in events:
            self.transfers.wait(event)
        return with_tensors(self.rest, tensors)


def _give_back(transfers: Transfers, buffers: list[Tensor]) -> None:
    for buffer in buffers:
        transfers.give_back(buffer)
