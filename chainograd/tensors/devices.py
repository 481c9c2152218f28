"""What the engine needs of a device: its module, random stream, queues, clock and counters.

Torch has one module for each kind of device (`torch.cuda`, `torch.xpu`, `torch.mps`, or what a
backend such as Ascend's registers), with the same functions in each. Where a module lacks one,
the engine does without: it copies while the steps wait, or reads the clock of the host.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Generator, Tensor

# Where memory is the host's, and nothing runs by itself.
_NONE = ("cpu", "meta")
# These have one device, so their functions take none.
_ALONE = ("mps",)


def is_accelerator(device: torch.device) -> bool:
    """Return whether a device has memory of its own, on this machine or, for a fake, elsewhere."""
    return device.type not in _NONE


def module_of(device: torch.device) -> Any | None:
    """Return torch's module for an accelerator that is there; None for the CPU and for fakes."""
    if device.type in _NONE:
        return None
    try:
        module: Any = torch.get_device_module(device)
    except RuntimeError:  # torch knows the name, but no backend has registered a module for it
        return None
    return module if module.is_available() else None


def _of(device: torch.device) -> tuple[torch.device, ...]:
    """Return what a module's functions are told about the device."""
    return () if device.type in _ALONE else (device,)


def indexed(device: torch.device) -> torch.device:
    """Return a device with its index; of one without, the current one's."""
    if device.index is not None or device.type in _NONE:
        return device
    current = getattr(module_of(device), "current_device", None)
    return torch.device(device.type, 0 if current is None else current())


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what was started on it."""
    module = module_of(device)
    if module is not None:
        module.synchronize(*_of(device))


# Random streams


class DeviceGenerator:
    """The global random stream of an accelerator.

    Args:
        device: The accelerator, which must be there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.module: Any = module_of(device)

    def get_state(self) -> Tensor:
        """Return where the stream stands, as bytes on the CPU."""
        return self.module.get_rng_state(*_of(self.device))

    def set_state(self, state: Tensor) -> None:
        """Put the stream where it stood."""
        self.module.set_rng_state(state, *_of(self.device))

    def generator(self) -> Generator | None:
        """Return the generator that draws from the stream; None if torch keeps it to itself."""
        self.get_state()  # where generators are made when the device is first used, this makes them
        if self.device.type == "mps":
            return self.module._get_default_mps_generator()
        generators = getattr(self.module, "default_generators", ())
        index = self.device.index or 0
        return generators[index] if index < len(generators) else None


def device_generators(devices: Any) -> list[DeviceGenerator]:
    """Return the global random streams of those devices that have one of their own."""
    there = {indexed(device) for device in devices if module_of(device) is not None}
    ordered = sorted(there, key=lambda device: (device.type, device.index))
    return [DeviceGenerator(d) for d in ordered if getattr(module_of(d), "get_rng_state", None)]


# Queues and clock


def current_stream(device: torch.device) -> Any | None:
    """Return the queue that operations on a device go to now; None if it has but one."""
    current = getattr(module_of(device), "current_stream", None)
    return None if current is None else current(device)


Moment = Any  # seconds, or an event of the device


def moment(device: torch.device) -> Moment:
    """Return this moment in the device's queue, without waiting for it if the device has events."""
    module = module_of(device)
    if module is None:
        return time.perf_counter()
    if getattr(getattr(module, "Event", None), "elapsed_time", None) is None:
        synchronize(device)
        return time.perf_counter()
    event, stream = module.Event(enable_timing=True), current_stream(device)
    if stream is None:
        event.record()
    else:  # by itself it takes the current device's
        event.record(stream)
    return event


def seconds_between(began: Moment, ended: Moment) -> float:
    """Return the seconds between two moments; of events this waits for the second."""
    if isinstance(began, float):
        return ended - began
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3


# Memory


def allocator_of(device: torch.device) -> Any | None:
    """Return the module whose allocator counts a device's bytes and their peak, if there is one."""
    module = module_of(device)
    counters = ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats")
    return module if all(getattr(module, name, None) for name in counters) else None


def pinned(count: int, *, dtype: torch.dtype) -> Tensor:
    """Return a one-dimensional buffer in pinned host memory."""
    return torch.empty(count, dtype=dtype, pin_memory=True)


def unpin_unused() -> None:
    """Let torch return pinned memory that nobody uses to the system, where it can."""
    empty = getattr(getattr(torch, "accelerator", None), "empty_host_cache", None)
    if empty is not None:
        empty()
