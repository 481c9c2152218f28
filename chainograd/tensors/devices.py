"""Devices: their module in torch, their random stream, queue, clock and memory counters.

Torch has one module for each type of device (`torch.cuda`, `torch.xpu`, `torch.mps`, or the module
that another backend has registered), with the same functions in each. If a module lacks a function,
the engine does without: it copies while the steps wait, or reads the host's clock.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Generator, Tensor

from chainograd.torch_internals.tensors import mps_generator

# Device types that use the host's memory and have no queue.
_NO_ACCELERATOR = ("cpu", "meta")
# Device types of which a machine has one device, so that torch's functions take no device.
_SINGLE = ("mps",)


def is_accelerator(device: torch.device) -> bool:
    """Return whether a device has memory of its own; the device need not be on this machine."""
    return device.type not in _NO_ACCELERATOR


def module_of(device: torch.device) -> Any | None:
    """Return torch's module for an accelerator of this machine; None for any other device."""
    if device.type in _NO_ACCELERATOR:
        return None
    try:
        module: Any = torch.get_device_module(device)
    except RuntimeError:  # torch knows the name, but no backend has registered a module for it
        return None
    return module if module.is_available() else None


def _arguments(device: torch.device) -> tuple[torch.device, ...]:
    """Return the arguments that name a device in calls of its module's functions."""
    return () if device.type in _SINGLE else (device,)


def indexed(device: torch.device) -> torch.device:
    """Return a device with its index; without an index, the current device of its type."""
    if device.index is not None or device.type in _NO_ACCELERATOR:
        return device
    current = getattr(module_of(device), "current_device", None)
    return torch.device(device.type, 0 if current is None else current())


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all the work in its queues."""
    module = module_of(device)
    if module is not None:
        module.synchronize(*_arguments(device))


# Random streams


class DeviceGenerator:
    """The global random stream of an accelerator.

    Args:
        device: An accelerator of this machine.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.module: Any = module_of(device)

    def get_state(self) -> Tensor:
        """Return the state of the stream, as bytes on the CPU."""
        return self.module.get_rng_state(*_arguments(self.device))

    def set_state(self, state: Tensor) -> None:
        """Set the state of the stream."""
        self.module.set_rng_state(state, *_arguments(self.device))

    def generator(self) -> Generator | None:
        """Return the generator that draws from the stream; None if torch does not expose it."""
        self.get_state()  # some backends create their generators when the device is first used
        if self.device.type == "mps":
            return mps_generator(self.module)
        generators = getattr(self.module, "default_generators", ())
        index = self.device.index or 0
        return generators[index] if index < len(generators) else None


def device_generators(devices: Any) -> list[DeviceGenerator]:
    """Return the global random streams of those devices that have their own stream."""
    there = {indexed(device) for device in devices if module_of(device) is not None}
    ordered = sorted(there, key=lambda device: (device.type, device.index))
    return [DeviceGenerator(d) for d in ordered if getattr(module_of(d), "get_rng_state", None)]


# Queues and clock


def current_stream(device: torch.device) -> Any | None:
    """Return the queue that a device's next operation goes to; None if it has only one queue."""
    current = getattr(module_of(device), "current_stream", None)
    return None if current is None else current(device)


Moment = Any  # seconds as a float, or an event of the device


def moment(device: torch.device) -> Moment:
    """Return this moment in a device's queue; it waits only for devices without events."""
    module = module_of(device)
    if module is None:
        return time.perf_counter()
    if getattr(getattr(module, "Event", None), "elapsed_time", None) is None:
        synchronize(device)
        return time.perf_counter()
    event, stream = module.Event(enable_timing=True), current_stream(device)
    if stream is None:
        event.record()
    else:  # without an argument it would be recorded in the current device's queue
        event.record(stream)
    return event


def seconds_between(began: Moment, ended: Moment) -> float:
    """Return the seconds between two moments; if they are events, this waits for the second."""
    if isinstance(began, float):
        return ended - began
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3


# Memory


def allocator_of(device: torch.device) -> Any | None:
    """Return the module that counts a device's allocated bytes and their peak, if torch has one."""
    module = module_of(device)
    counters = ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats")
    return module if all(getattr(module, name, None) for name in counters) else None


def pinned(count: int, *, dtype: torch.dtype) -> Tensor:
    """Return a one-dimensional buffer in pinned host memory."""
    return torch.empty(count, dtype=dtype, device="cpu", pin_memory=True)


def unpin_unused() -> None:
    """Let torch return unused pinned memory to the system, if this version of torch can."""
    empty = getattr(getattr(torch, "accelerator", None), "empty_host_cache", None)
    if empty is not None:
        empty()
