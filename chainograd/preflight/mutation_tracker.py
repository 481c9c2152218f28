"""Notes tensors that a step changes in place, and restores them at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor

from chainograd.preflight.observers import Call
from chainograd.preflight.sites import Site, site
from chainograd.replay.buffers import put_back
from chainograd.torch_internals.tensors import storage_id


class MutationTracker:
    """Notes in-place changes of tensors that the step did not make, and restores them at the end.

    Args:
        entering: Tensors of the state that enters the step.
        free: Tensors that may be changed: batch statistics.
        undo: Gets a callback for each change, which restores the tensor.

    Attributes:
        entering: Where the state was changed.
        found: By storage, where a tensor from outside the step was changed. A tensor that the step
            makes without torch is included. So only a change in two runs is certain.
    """

    def __init__(self, entering: list[Tensor], free: list[Tensor], undo: ExitStack) -> None:
        self.entering: Site | None = None
        self.found: dict[int, tuple[Site, torch.Size]] = {}
        self._undo = undo
        self._state = set(_storages(entering))
        self._made = set(_storages(free))

    def before(self, call: Call) -> None:
        """Note tensors that will be changed and were not made in this step, with their values."""
        for tensor in call.changed():
            (storage,) = _storages([tensor])
            if storage in self._made or storage in self.found:
                continue
            if storage in self._state:
                self.entering = self.entering or site()
            else:
                self.found[storage] = site(), tensor.shape
            self._keep(tensor.detach())

    def after(self, call: Call, out: list[Tensor]) -> None:
        """Note the tensors that the operation made: results that are not views of its inputs."""
        self._made |= set(_storages(out)) - set(_storages(call.given))

    def _keep(self, tensor: Tensor) -> None:
        if tensor.layout is torch.strided:
            size = tensor.untyped_storage().nbytes()
            self._undo.callback(_put_back, tensor, tensor.clone(), size)


def _put_back(tensor: Tensor, value: Tensor, size: int) -> None:
    # FSDP frees the memory of tensors that are still alive.
    if tensor.untyped_storage().nbytes() == size:
        put_back([tensor], [value])


def _storages(tensors: list[Tensor]) -> Iterator[int]:
    """Yield a number for each tensor, which is equal for tensors that share memory."""
    for tensor in tensors:
        try:
            yield storage_id(tensor.untyped_storage())
        except (NotImplementedError, RuntimeError):  # sparse, or without memory
            yield id(tensor)
