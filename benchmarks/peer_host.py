"""Saved tensors that wait on the host, counted: fakes have no bytes that could be moved."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from models_of_today import Built
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class Host:
    """Bytes that lie on the host.

    Attributes:
        live_bytes: The bytes that are on the host now.
        peak_bytes: The most at once.
    """

    def __init__(self) -> None:
        self.live_bytes = self.peak_bytes = 0

    def add(self, count: int) -> None:
        """Count bytes that come, or go if negative."""
        self.live_bytes += count
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


@contextmanager
def on_host(built: Built, host: Host) -> Iterator[None]:
    """Let saved tensors, weights excepted, lie on the host: `save_on_cpu`, counted.

    Fake tensors have no bytes to be moved. So the size of what is saved is counted on the host,
    and a new tensor is made when it is asked for.
    """
    weights = {id(p) for p in built.net.parameters()}

    def pack(tensor: Tensor) -> Any:
        return tensor if id(tensor) in weights else _Away(tensor, host)

    def unpack(packed: Any) -> Tensor:
        return packed.back() if isinstance(packed, _Away) else packed

    with saved_tensors_hooks(pack, unpack):
        yield


class _Away:
    """The place of a tensor on the host."""

    def __init__(self, tensor: Tensor, host: Host) -> None:
        self.like = tensor.shape, tensor.stride(), tensor.dtype
        size = tensor.numel() * tensor.element_size()
        host.add(size)
        weakref.finalize(self, host.add, -size)

    def back(self) -> Tensor:
        shape, stride, dtype = self.like
        return torch.empty_strided(shape, stride, dtype=dtype)
