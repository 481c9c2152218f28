"""Copies between an accelerator and pinned host memory, which run beside the steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainograd.tensors.devices import module_of, pinned, unpin_unused

# Note [One side stream]
# 1. All copies, out and back, are queued on one side stream, so no copy overtakes another: a reused
#    host buffer is not written before an earlier copy has read it.
# 2. The current stream is looked up before the side stream is entered. Inside, the current stream
#    is the side stream, and no copy would wait for the steps.
# 3. The side stream waits for the current stream before each copy. On the way out, the steps must
#    have written the state; on the way back, they must be done with whatever used that memory.
# 4. Device memory belongs to the current stream's pool but is used on the side stream, so the
#    allocator is told (`record_stream`): the memory may be freed at any time, also after an error.
# 5. The steps wait for a copy's event only when they need the copied tensor.
# 6. A device without streams (MPS, whose memory is the host's) copies in its one queue, and the
#    host waits.

# Note [Spare buffers]
# Pinned memory is slow to allocate, so buffers are reused. It is also memory that nothing else can
# use, so only sizes that the current call uses are kept: a buffer of another size is freed when a
# new buffer must be allocated, or when its node returns it. Torch caches freed pinned memory in
# turn. Torch is asked to release it when the next call begins, never from a finalizer.


class Transfers:
    """Copies to the host and back, for one device.

    Args:
        device: The accelerator.
        module: Torch's module for the device, which makes streams; a stand-in in tests.
        allocate: Returns a host buffer with a number of elements and a dtype.

    Attributes:
        spare: Buffers that can be reused, by number of elements and dtype.
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
        """Return the constructor and its argument: a copy gets its own stream and buffers."""
        return Transfers, (self.device,)

    def begin(self) -> None:
        """Begin a call, and free the buffers that the last call did not use."""
        self._drop_unused()
        self._used = set()
        if self._dropped:
            self._dropped = False
            unpin_unused()

    def out(self, flat: Tensor) -> Tensor:
        """Start copying a one-dimensional tensor to the host, and return the buffer."""
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
        """Start copying a buffer into a tensor on the device, and return the event of its end."""
        return self._copy(flat, buffer, on_device=flat)

    def wait(self, event: Any) -> None:
        """Make the current stream wait for a copy."""
        if event is not None:
            self.module.current_stream(self.device).wait_event(event)

    def give_back(self, buffer: Tensor) -> None:
        """Take a buffer back for reuse. A finalizer may call this."""
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
