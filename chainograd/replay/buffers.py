"""Buffers that steps change: a rerun changes copies of them, so that each step counts once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.jit import ScriptModule
from torch.nn import Module

from chainograd.torch_internals.modes import is_fake
from chainograd.torch_internals.modules import Norm, buffers_of
from chainograd.torch_internals.tensors import preserve_version, version_or_zero

# Note [Buffers]
# 1. A rerun works on copies of the buffers. So its graph saves a copy, whose values stay, and a
#    backward hook that writes to a buffer writes to the module's own, as in the plain loop.
# 2. A step may read a buffer that it changes, as spectral norm reads its estimate. So the copies
#    have the values that the buffers had before the first run of that step. Those values are stored
#    once for all steps between two changes. Batch norm in training does not read its statistics,
#    and changes them without counting a version: copies of them may have any values.
# 3. If the weights of a network are quantized into buffers, copies of all buffers would double its
#    memory. So a large buffer is copied only if it was replaced or its version has moved since the
#    first step began. Its earlier values are then unknown.

SMALL = 1 << 18  # bytes up to which a buffer is copied without a known change, in training
SMALL_IN_EVAL = 1 << 14  # the same in eval mode, where only counters and averages change


class Place(NamedTuple):
    """Where a module keeps a buffer.

    Attributes:
        table: The module's table of buffers.
        name: The buffer's name.
        limit: Bytes up to which the buffer is copied without a known change.
    """

    table: dict[str, Tensor | None]
    name: str
    limit: int = SMALL

    @property
    def buffer(self) -> Tensor | None:
        """The buffer that is there now."""
        # TorchScript's table is not a dict.
        return self.table[self.name] if self.name in self.table else None  # noqa: SIM401


Value = tuple[Place, Tensor]


class Buffers:
    """The buffers that steps reach, and how they change from step to step.

    Args:
        modes: Modules, and whether each is in training.

    Attributes:
        statistics: Places of batch norms' statistics, which no step reads.
        others: Places of all other buffers.
        steps: For each step, the values that small buffers among the others had before its first
            run, by their places in `others`.
    """

    def __init__(self, modes: Sequence[tuple[Module, bool]]) -> None:
        self.statistics: list[Place] = []
        self.others: list[Place] = []
        for module, training in modes:
            table, may_be_norm = buffers_of(module), isinstance(module, (Norm, ScriptModule))
            places = self.statistics if training and may_be_norm else self.others
            places += [
                Place(table, name, SMALL if training else SMALL_IN_EVAL)
                for name, buffer in table.items()
                # A buffer with a gradient is used as it is.
                if buffer is not None and not buffer.requires_grad
            ]
        self.steps: list[dict[int, Tensor]] = []
        self._first = self._last = [_Seen.of(place) for place in self.others]

    def begin_step(self) -> None:
        """Note the buffers before the first run of the next step."""
        now = [_Seen.of(place) for place in self.others]
        pairs = enumerate(zip(now, self._last, strict=True))
        moved = [at for at, (a, b) in pairs if not self.steps or a.moved(b)]
        values = self.steps[-1] if self.steps else {}
        new = {at: b.clone() for at in moved for b in _small(self.others[at], now[at].buffer)}
        self.steps.append({**values, **new} if new else values)
        self._last = now

    def of_step(self, i: int) -> list[Value]:
        """Return the buffers that step i may change, with their values before its first run."""
        found = [(place, place.buffer) for place in self.statistics]
        for at, (place, first) in enumerate(zip(self.others, self._first, strict=True)):
            if _Seen.of(place).moved(first):
                found.append((place, self.steps[i].get(at, place.buffer)))
        return [(place, value) for place, value in found if value is not None]

    def beforehand(self) -> list[Value]:
        """Return the buffers that steps may change, with their values, before any step has run."""
        found = [(place, place.buffer) for place in (*self.statistics, *self.others)]
        return [(place, small) for place, value in found for small in _small(place, value)]


class _Seen(NamedTuple):
    """A buffer, and how often it had been changed when it was seen."""

    buffer: Tensor | None
    version: int

    @classmethod
    def of(cls, place: Place) -> _Seen:
        buffer = place.buffer
        return cls(buffer, 0 if buffer is None else version_or_zero(buffer))

    def moved(self, other: _Seen) -> bool:
        return self.buffer is not other.buffer or self.version != other.version


def _small(place: Place, buffer: Tensor | None) -> list[Tensor]:
    """Return the buffer if it may be copied without a known change, else nothing."""
    if buffer is None or buffer.numel() * buffer.element_size() > place.limit:
        return []
    return [buffer]


@contextmanager
def buffer_copies(values: Iterable[Value]) -> Iterator[None]:
    """Replace buffers by copies of some values for a block."""
    values = list(values)
    own = [(place, place.buffer) for place, _ in values]
    copies: dict[int, Tensor] = {}  # one copy of a buffer that two modules share
    for place, value in values:
        copies.setdefault(id(value), value.clone())
        place.table[place.name] = copies[id(value)]
    try:
        yield
    finally:
        for place, buffer in own:
            place.table[place.name] = buffer


class BufferSnapshot:
    """The buffers before a step, to be restored if the step must begin again."""

    def __init__(self, buffers: Buffers) -> None:
        kept = [
            (place, b.clone()) for place in buffers.statistics if (b := place.buffer) is not None
        ]
        values = buffers.steps[-1]
        kept += [(place, values[at]) for at, place in enumerate(buffers.others) if at in values]
        self.kept = [(place, place.buffer, value) for place, value in kept]

    def put_back(self) -> None:
        """Restore the modules' buffers, and the values that the buffers had."""
        for place, buffer, _ in self.kept:
            place.table[place.name] = buffer
        found = [(buffer, value) for _, buffer, value in self.kept if buffer is not None]
        put_back([buffer for buffer, _ in found], [value for _, value in found])


def put_back(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Restore the values of some buffers, without counting that as a change."""
    with torch.no_grad():
        for buffer, value in zip(buffers, values, strict=True):
            # Batch norm changes its statistics without counting a version. Restoring must not count
            # one either, or graphs outside the chain that saved the buffer would refuse it. Whether
            # a fake buffer has changed is unknown.
            if is_fake(buffer) or not torch.equal(buffer, value):
                with preserve_version(buffer):
                    buffer.copy_(value)
