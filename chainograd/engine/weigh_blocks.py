"""What each block of a step weighs: noted while the cotangent passes the step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from chainograd.metering import Reading, storages
from chainograd.plans.plan import BlockCost
from chainograd.tensors.devices import synchronize
from chainograd.torch_internals.tensors import storage_id


class BlockWeigher:
    """Notes the bytes and seconds of the reruns of blocks.

    Args:
        device: The device.

    Attributes:
        reading: Counts the bytes of the device; None if blocks are not weighed now.
        costs: The costs of the blocks, in the order of the backward pass.
    """

    def __init__(self, device: torch.device) -> None:
        self.reading: Reading | None = None
        self.device = device
        self.costs: list[BlockCost] = []
        self._met: set[int] = set()
        self._inputs: dict[str, list[int]] = {}

    def enters(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Note what enters a block, and its attention's outputs, in the step's forward pass."""
        if self.reading is None:
            return
        new = {storage_id(s): s.nbytes() for tensor in inputs for s in storages(tensor)}
        size = sum(size for key, size in new.items() if key not in self._met)
        self._met.update(new)
        kept = sum(tensor.nbytes for tensor in outputs)
        self._inputs.setdefault(name, []).extend((size, kept))

    @contextmanager
    def reran(self, name: str) -> Iterator[None]:
        """Weigh the graph of a block that runs again inside the context."""
        reading = self.reading
        if reading is None:
            yield
            return
        before, began = reading.now(), self._now()
        yield
        seconds = self._now() - began
        *rest, size, kept = self._inputs[name]
        self._inputs[name] = rest
        self.costs.append(BlockCost(name, size, reading.now() - before, kept, seconds))

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()
