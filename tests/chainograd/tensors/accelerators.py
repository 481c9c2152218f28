"""An accelerator written in Python, for machines without one: torch's module for a device."""

from contextlib import contextmanager

import torch


class Accelerator:
    """Stands for `torch.cuda` and its like.

    Attributes:
        log: What the device and its streams were asked to do.
        current: The stream that operations go to.
        clock: Milliseconds; it goes on by one with every event.
    """

    def __init__(self, count=1, lacks=()):
        self.log, self.current, self.clock = [], "main", 0
        self.allocated = self.peak = 100
        self.default_generators = [torch.Generator().manual_seed(k) for k in range(count)]
        for name in lacks:
            setattr(self, name, None)

    @classmethod
    def standing_for(cls, kind, monkeypatch, count=1, lacks=()):
        """Return one that torch takes for the module of a kind of device."""
        module, real = cls(count, lacks), torch.get_device_module
        monkeypatch.setattr(
            torch,
            "get_device_module",
            lambda device: module if torch.device(device).type == kind else real(device),
        )
        return module

    def is_available(self):
        return True

    def current_device(self):
        return 0

    def synchronize(self, device=None):
        self.log.append(("synchronize", 0 if device is None else device.index))

    # Random streams

    def get_rng_state(self, device):
        return self.default_generators[device.index].get_state()

    def set_rng_state(self, state, device):
        self.default_generators[device.index].set_state(state)

    # Streams

    def Stream(self, device):  # noqa: N802
        return Side(self)

    def current_stream(self, device):
        return Current(self, self.current)

    @contextmanager
    def stream(self, side):
        before, self.current = self.current, "side"
        try:
            yield
        finally:
            self.current = before

    @property
    def Event(self):  # noqa: N802
        return Event

    # Memory

    def allocate(self, by):
        """Let tensors take so many bytes more."""
        self.allocated += by
        self.peak = max(self.peak, self.allocated)

    def memory_allocated(self, device):
        return self.allocated

    def max_memory_allocated(self, device):
        return self.peak

    def reset_peak_memory_stats(self, device):
        self.peak = self.allocated


class Current:
    """The stream that operations go to."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __eq__(self, other):
        return self.name == other.name

    __hash__ = None

    def wait_event(self, event):
        assert self.name == "main", "the steps' stream waits, not the side stream"
        self.module.log.append(("main waits", event))


class Side:
    """A stream beside it."""

    def __init__(self, module):
        self.module, self.events = module, 0

    def wait_stream(self, stream):
        assert stream.name == "main", "the current stream was asked for too late"
        self.module.log.append(("side waits for", stream.name))

    def record_event(self):
        assert self.module.current == "side"
        self.events += 1
        return self.events


class Event:
    """A moment in a stream, whose time is there once somebody has waited for it."""

    def __init__(self, enable_timing):
        assert enable_timing
        self.time, self.waited_for = None, False

    def record(self, stream):
        stream.module.clock += 1
        self.time = stream.module.clock

    def synchronize(self):
        self.waited_for = True

    def elapsed_time(self, later):
        assert later.waited_for
        return later.time - self.time
