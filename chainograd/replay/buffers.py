"""Buffers that steps change: a rerun changes copies of them, so that each step counts once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.jit import ScriptModule
from torch.nn import Module
from torch.nn.modules.batchnorm import _NormBase

# Note [Buffers]
# 1. A rerun works on copies. What its graph saves of a buffer is then the copy, whose values stay;
#    and what a backward hook writes goes to the buffer itself, as in the plain loop.
# 2. A step may read what it changes, as spectral norm reads its estimate. So the copies have the
#    values that the buffers had when that step ran first; those are kept with the nodes, once for
#    all steps between two changes. Batch norm in training does not read its statistics, and
#    changes them without counting a version: of these any values will do.
# 3. To copy all buffers of a network whose weights are quantized into buffers would double it. So
#    large ones are copied only if their version has moved since the first step began, or if they
#    were replaced. Their earlier values are not known then.

SMALL = 1 << 18  # bytes of a buffer that is copied without being known to change, in training
SMALL_IN_EVAL = 1 << 14  # and otherwise: what changes then is a counter or an average


class Place(NamedTuple):
    """Where a module keeps a buffer."""

    table: dict[str, Tensor | None]
    name: str
    limit: int = SMALL

    @property
    def buffer(self) -> Tensor | None:
        """What is there now."""
        # TorchScript's table is no dict.
        return self.table[self.name] if self.name in self.table else None  # noqa: SIM401


Value = tuple[Place, Tensor]


class Buffers:
    """The buffers that steps reach, and how they change from step to step.

    Args:
        modes: Modules, and whether each is in training.

    Attributes:
        statistics: Places of batch norms' statistics, which no step reads.
        others: Places of all others.
        steps: For each step, the values of small ones among the others before it ran first.
    """

    def __init__(self, modes: Sequence[tuple[Module, bool]]) -> None:
        self.statistics: list[Place] = []
        self.others: list[Place] = []
        for module, training in modes:
            table, may_be_norm = module._buffers, isinstance(module, (_NormBase, ScriptModule))
            kind = self.statistics if training and may_be_norm else self.others
            kind += [
                Place(table, name, SMALL if training else SMALL_IN_EVAL)
                for name, buffer in table.items()
                # One with a gradient is used as it is.
                if buffer is not None and not buffer.requires_grad
            ]
        self.steps: list[dict[int, Tensor]] = []
        self._first = self._last = [_Seen.of(place) for place in self.others]

    def begin_step(self) -> None:
        """Note what buffers are before the next step runs first."""
        now = [_Seen.of(place) for place in self.others]
        pairs = enumerate(zip(now, self._last, strict=True))
        moved = [at for at, (a, b) in pairs if not self.steps or a.moved(b)]
        values = self.steps[-1] if self.steps else {}
        new = {at: b.clone() for at in moved for b in _small(self.others[at], now[at].buffer)}
        self.steps.append({**values, **new} if new else values)
        self._last = now

    def of_step(self, i: int) -> list[Value]:
        """Return the values for a rerun of step i, of buffers that it may change."""
        found = [(place, place.buffer) for place in self.statistics]
        for at, (place, first) in enumerate(zip(self.others, self._first, strict=True)):
            if _Seen.of(place).moved(first):
                found.append((place, self.steps[i].get(at, place.buffer)))
        return [(place, value) for place, value in found if value is not None]

    def beforehand(self) -> list[Value]:
        """Return the values of buffers that a run may change, where no run has told which."""
        found = [(place, place.buffer) for place in (*self.statistics, *self.others)]
        return [(place, small) for place, value in found for small in _small(place, value)]


class _Seen(NamedTuple):
    """A buffer, and how often it was changed when it was seen."""

    buffer: Tensor | None
    version: int

    @classmethod
    def of(cls, place: Place) -> _Seen:
        buffer = place.buffer
        return cls(buffer, 0 if buffer is None or buffer.is_inference() else buffer._version)

    def moved(self, other: _Seen) -> bool:
        return self.buffer is not other.buffer or self.version != other.version


def _small(place: Place, buffer: Tensor | None) -> list[Tensor]:
    """Return a buffer, if there is one and it is small enough to be copied unasked."""
    if buffer is None or buffer.numel() * buffer.element_size() > place.limit:
        return []
    return [buffer]


@contextmanager
def buffer_copies(values: Iterable[Value]) -> Iterator[None]:
    """Let modules have copies of some values in place of their buffers for a block."""
    values = list(values)
    own = [(place, place.buffer) for place, _ in values]
    copies: dict[int, Tensor] = {}  # a buffer of two modules stays one
    for place, value in values:
        copies.setdefault(id(value), value.clone())
        place.table[place.name] = copies[id(value)]
    try:
        yield
    finally:
        for place, buffer in own:
            place.table[place.name] = buffer


class BufferSnapshot:
    """The buffers before a step, to be put back if it has to begin anew."""

    def __init__(self, buffers: Buffers) -> None:
        kept = [
            (place, b.clone()) for place in buffers.statistics if (b := place.buffer) is not None
        ]
        values = buffers.steps[-1]
        kept += [(place, values[at]) for at, place in enumerate(buffers.others) if at in values]
        self.kept = [(place, place.buffer, value) for place, value in kept]

    def put_back(self) -> None:
        """Let the modules have these buffers again, with the values that they had."""
        for place, buffer, _ in self.kept:
            place.table[place.name] = buffer
        found = [(buffer, value) for _, buffer, value in self.kept if buffer is not None]
        put_back([buffer for buffer, _ in found], [value for _, value in found])


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
