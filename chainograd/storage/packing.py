"""A tensor as a row of numbers and a layout, for storing states in other memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chainograd.errors import StoreError
from chainograd.state import State
from chainograd.tensors.parts import is_plain, kind_of
from chainograd.torch_internals.modes import is_fake
from chainograd.torch_internals.tensors import negated

# Note [Layouts]
# 1. Torch chooses kernels by strides, also by those of dimensions of size 1 (`channels_last` at
#    batch 1), and other kernels round differently. So a tensor is restored with its strides.
# 2. A tensor without gaps is stored as its memory. So are expanded and overlapping tensors, whose
#    memory is smaller than their entries.
# 3. A tensor with gaps, such as every second column, is stored as its entries, one after another.
#    Its gaps are restored with it.


@dataclass(frozen=True, slots=True)
class Layout:
    """How to restore a tensor from the numbers that are stored.

    Attributes:
        gaps: Whether the entries are stored one after another; otherwise the memory is stored.
        conj: Whether the tensor is lazily conjugated.
        neg: Whether the tensor is lazily negated.
    """

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    gaps: bool
    conj: bool
    neg: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """Return a plain tensor's layout."""
        size, stride = tensor.size(), tensor.stride()
        gaps = _apart(size, stride) and _reach(size, stride) > tensor.numel()
        lazy = tensor.is_conj(), tensor.is_neg()
        return cls(size, stride, tensor.dtype, tensor.device, gaps, *lazy)

    @property
    def count(self) -> int:
        """How many numbers are stored."""
        return self.size.numel() if self.gaps else _reach(self.size, self.stride)

    def packed(self, tensor: Tensor) -> Tensor:
        """Return the numbers to store of a tensor of this layout, in one dimension."""
        stored = _lazily(tensor.detach(), self)
        return stored.contiguous().view(-1) if self.gaps else stored.as_strided((self.count,), (1,))

    def room(self, device: torch.device | None = None) -> Tensor:
        """Return an uninitialised tensor for the stored numbers."""
        where = self.device if device is None else device
        return torch.empty(self.count, dtype=self.dtype, device=where)

    def unpacked(self, packed: Tensor) -> Tensor:
        """Return the tensor that was packed. It may use the memory of ``packed``."""
        if self.gaps:
            stored = torch.empty_strided(
                self.size, self.stride, dtype=packed.dtype, device=packed.device
            ).copy_(packed.view(self.size))
        else:  # `set_`, because `as_strided` would return a view
            stored = torch.empty(0, dtype=packed.dtype, device=packed.device).set_(
                packed.untyped_storage(), packed.storage_offset(), self.size, self.stride
            )
        return _lazily(stored, self)


def _lazily(tensor: Tensor, layout: Layout) -> Tensor:
    """Return the memory of a lazily conjugated or negated tensor, or the tensor of such memory."""
    tensor = tensor.conj() if layout.conj else tensor
    return negated(tensor) if layout.neg else tensor


def _reach(size: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many numbers a tensor spans in memory, gaps included."""
    if 0 in size:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))


def _apart(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Return whether surely no two entries of a tensor share memory."""
    reach = 1
    for step, n in sorted((step, n) for n, step in zip(size, stride, strict=True) if n > 1):
        if step < reach:
            return False
        reach += (n - 1) * step
    return True


def refuse_unstorable(state: State, store: str) -> None:
    """Raise if a tensor of the state cannot be restored from its bytes alone.

    Raises:
        StoreError: If the state holds such a tensor.
    """
    for leaf in state.tensors:
        if is_fake(leaf):
            raise StoreError(
                f"`store` {store} cannot hold fake tensors, which have no bytes. Use "
                "`chain.measure` under FakeTensorMode, or `store='device'`."
            )
        if not is_plain(leaf):
            raise StoreError(
                f"`store` {store} holds plain strided tensors only, but the state holds a "
                f"{kind_of(leaf)}. Use `store='device'`, or put the plain tensors that it is made "
                "of into the state."
            )


def without_tensors(state: State) -> State:
    """Return the state with None for each tensor; other leaves are wrapped in a tuple."""
    return state._replace(
        leaves=tuple(None if isinstance(leaf, Tensor) else (leaf,) for leaf in state.leaves)
    )


def with_tensors(rest: State, tensors: Sequence[Tensor]) -> State:
    """Return the state that `without_tensors` made, with tensors again."""
    coming = iter(tensors)
    return rest._replace(
        leaves=tuple(next(coming) if leaf is None else leaf[0] for leaf in rest.leaves)
    )
