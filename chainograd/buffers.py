"""Buffers that steps change: a rerun changes copies of them, so that each step counts once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn import Module

# Note [Buffers]
# 1. A rerun works on copies. What its graph saves of a buffer is then the copy, whose values stay;
#    and what a backward hook writes goes to the buffer itself, as in the plain loop.
# 2. To copy all buffers of a network whose weights are quantized into buffers would double it. So
#    only those are copied that a step may change: small ones of modules in training (batch norm
#    changes its statistics without counting a version), and those whose version has moved since
#    the first step began, or that were replaced.

SMALL = 1 << 18  # bytes of a buffer that is copied without being known to change


class Buffers:
    """The buffers that steps reach, as they are now.

    Args:
        modes: Modules, and whether each is in training.
    """

    def __init__(self, modes: Sequence[tuple[Module, bool]]) -> None:
        self.known = [
            (module._buffers, name, buffer, _version(buffer), training and buffer.nbytes <= SMALL)
            for module, training in modes
            # TorchScript keeps its buffers elsewhere; one with a gradient is used as it is.
            if isinstance(module._buffers, dict)
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.requires_grad
        ]

    def changing(self) -> list[tuple[dict[str, Tensor | None], str]]:
        """Return the tables and names of buffers that a step may change, or is known to have."""
        return [
            (table, name)
            for table, name, buffer, version, small in self.known
            if small or table.get(name) is not buffer or version != _version(buffer)
        ]


@contextmanager
def on_copies(places: Sequence[tuple[dict[str, Tensor | None], str]]) -> Iterator[None]:
    """Let modules have copies of some buffers for a block."""
    own = [(table, name, table.get(name)) for table, name in places]
    copies: dict[int, Tensor] = {}  # a buffer of two modules stays one
    for table, name, buffer in own:
        if buffer is not None:
            if id(buffer) not in copies:
                copies[id(buffer)] = buffer.detach().clone()
            table[name] = copies[id(buffer)]
    try:
        yield
    finally:
        for table, name, buffer in own:
            table[name] = buffer


class Snapshot:
    """The values of some buffers, to be put back if a step has to begin anew."""

    def __init__(self, places: Sequence[tuple[dict[str, Tensor | None], str]]) -> None:
        self.kept = [
            (table, name, buffer, buffer.clone())
            for table, name in places
            if (buffer := table.get(name)) is not None
        ]

    def put_back(self) -> None:
        """Let the modules have these buffers again, with the values that they had."""
        for table, name, buffer, _ in self.kept:
            table[name] = buffer
        put_back([buffer for _, _, buffer, _ in self.kept], [value for *_, value in self.kept])


def statistics(modes: Sequence[tuple[Module, bool]]) -> list[Tensor]:
    """Return the buffers of modules in training, which their steps may change."""
    return [
        buffer
        for module, training in modes
        if training
        for buffer in module._buffers.values()
        if buffer is not None
    ]


def put_back(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Give buffers the values that they had."""
    with torch.no_grad():
        for buffer, value in zip(buffers, values, strict=True):
            # Batch norm changes its statistics without counting a version; so does this, for
            # graphs outside the chain that hold them. Of fakes it is not known what they hold.
            if isinstance(buffer, FakeTensor) or not torch.equal(buffer, value):
                with _unsafe_preserve_version_counter(buffer):
                    buffer.copy_(value)


def _version(buffer: Tensor) -> int:
    return 0 if buffer.is_inference() else buffer._version
