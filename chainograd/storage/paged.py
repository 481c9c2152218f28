"""Tensors of a step's graph, put into the chain's store and brought back one use ahead."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from chainograd.state import State
from chainograd.storage.call_storage import CallStorage, StoredState
from chainograd.storage.kept_tensors import KeptInPlace
from chainograd.storage.packing import Layout, with_tensors, without_tensors
from chainograd.tensors.parts import is_plain
from chainograd.torch_internals.modes import is_fake
from chainograd.torch_internals.tensors import storage_id, version_or_zero

# Note [Paged tensors]
# 1. What graphs that are cut into blocks hold from the forward pass to the backward pass goes to
#    the store, if that is not the device: inputs of blocks, attention's outputs, and what
#    operations between blocks save.
# 2. A tensor that several blocks are given, such as an embedding of the time, is stored once. When
#    the first of them needs it again it is brought back, and stays until the last is done.
# 3. The backward pass needs the tensors in the reverse order of the forward pass. So with each use,
#    the tensors of the use before it start to come.
# 4. What is there anyway (weights, arguments of the chain) and what is small stays on the device.

SMALL = 1 << 14  # bytes of a tensor that is not worth a transfer


class PagedTensor:
    """One tensor in the store. It is freed there when the last use of it is.

    Attributes:
        origin: The memory that it was copied from, as long as that is alive.
    """

    def __init__(self, node: StoredState, origin: torch.UntypedStorage) -> None:
        self.node: StoredState | None = node
        self.origin = weakref.ref(origin)
        self.tensor: Tensor | None = None

    def prefetch(self) -> None:
        """Start to bring the tensor back."""
        if self.node is not None:
            self.node.prefetch()

    def load(self) -> Tensor:
        """Return the tensor."""
        tensor = self.tensor
        if tensor is None:
            assert self.node is not None
            tensor = self.node.load().leaves[0]
            self.tensor, self.node = tensor, None
        return tensor


Kept = PagedTensor | KeptInPlace


@dataclass(eq=False)
class Use:
    """Tensors that are needed together.

    Attributes:
        tensors: The tensors.
        before: The use before it, which the backward pass comes to next.
    """

    tensors: list[Kept]
    before: weakref.ref[Use] | None

    def load(self) -> list[Tensor]:
        """Return the tensors, and start to bring back what is needed next."""
        loaded = [_loaded(each) for each in self.tensors]
        use = None if self.before is None else self.before()
        for each in [] if use is None else use.tensors:
            if isinstance(each, PagedTensor):
                each.prefetch()
        return loaded

    def load_one(self) -> Tensor:
        """Return the only tensor."""
        return self.load()[0]


def _loaded(kept: Kept) -> Tensor:
    return kept.load() if isinstance(kept, PagedTensor) else kept.load()[0]


class Paged:
    """Keeps tensors in a store: note [Paged tensors].

    Args:
        storage: The store's storage for a call.
        here: Ids of storages that stay on the device.

    Attributes:
        stored_bytes: The bytes of all tensors that were put into the store.
    """

    def __init__(self, storage: CallStorage, here: Collection[int]) -> None:
        self.storage, self.here = storage, here
        self.stored_bytes = 0
        self._last: weakref.ref[Use] | None = None
        self._known: weakref.WeakValueDictionary[Any, PagedTensor] = weakref.WeakValueDictionary()

    def keep(self, tensors: Sequence[Tensor]) -> Use:
        """Keep tensors until what is returned is freed."""
        use = Use([self._kept(tensor) for tensor in tensors], self._last)
        self._last = weakref.ref(use)
        return use

    def saving(self) -> AbstractContextManager[object]:
        """Return a context in which graphs keep here what they save."""
        return saved_tensors_hooks(lambda tensor: self.keep([tensor]), Use.load_one)

    def settle(self) -> None:
        """Wait until all tensors are in the store."""
        self.storage.settle()

    def _kept(self, tensor: Tensor) -> Kept:
        if not (is_plain(tensor) or is_fake(tensor)) or tensor.nbytes <= SMALL:
            return KeptInPlace([tensor])
        storage = tensor.untyped_storage()
        key = storage_id(storage)
        if key in self.here:
            return KeptInPlace([tensor])
        form = (key, tensor.storage_offset(), tensor.size(), tensor.stride(), tensor.dtype,
                tensor.is_conj(), tensor.is_neg(), version_or_zero(tensor))  # fmt: skip
        known = self._known.get(form)
        if known is None or known.origin() is not storage:  # an id of memory may be another's later
            known = PagedTensor(self.storage.put(0, State.of(_as_it_is(tensor))), storage)
            self.stored_bytes += tensor.nbytes
            self._known[form] = known
        return known


def _as_it_is(tensor: Tensor) -> Tensor:
    """Return a tensor that no change in place reaches until it is in the store.

    What leaves an accelerator is copied in order with what is computed there. A file is written
    from a CPU's memory while the step goes on.
    """
    return tensor.detach().clone() if tensor.device.type == "cpu" else tensor.detach()


class FakeStorage:
    """Stands for a store while costs are measured on fake tensors, which have no bytes to store."""

    in_sight = False

    def put(self, index: int, state: State) -> FakeState:
        """Remember what a state is like."""
        return FakeState(without_tensors(state), [Layout.of(tensor) for tensor in state.tensors])

    def settle(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class FakeState:
    """What a state is like."""

    rest: State
    layouts: list[Layout]

    def load(self) -> State:
        """Return a fake state like it."""
        tensors = [
            torch.empty_strided(each.size, each.stride, dtype=each.dtype, device=each.device)
            for each in self.layouts
        ]
        return with_tensors(self.rest, tensors)

    def prefetch(self) -> None:
        """Do nothing."""
