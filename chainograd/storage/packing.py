"""A state as bytes, and what the bytes mean: for keeping it in other memory."""

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
# 1. Kernels are chosen by strides, of dimensions of size 1 too (`channels_last` at batch 1), and
#    other kernels round differently. So a tensor comes back with the strides that it had.
# 2. Of a tensor without gaps its memory is kept, as it lies there; so are expanded and overlapping
#    tensors, whose memory is less than their entries.
# 3. Of a tensor with gaps, such as every second column, the entries are kept, one after another.
#    It takes its gaps again when it is brought back.


@dataclass(frozen=True, slots=True)
class Layout:
    """What the bytes of a tensor mean.

    Attributes:
        gaps: Whether its entries are kept one after another, not its memory.
        conj: Whether it is lazily conjugated.
        neg: Whether it is lazily negated.
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
        """How many numbers are kept."""
        return self.size.numel() if self.gaps else _reach(self.size, self.stride)

    def packed(self, tensor: Tensor) -> Tensor:
        """Return what is kept of a tensor of this layout, in one dimension."""
        stored = _lazily(tensor.detach(), self)
        return stored.contiguous().view(-1) if self.gaps else stored.as_strided((self.count,), (1,))

    def room(self, device: torch.device | None = None) -> Tensor:
        """Return an unset tensor for what is kept."""
        where = self.device if device is None else device
        return torch.empty(self.count, dtype=self.dtype, device=where)

    def unpacked(self, packed: Tensor) -> Tensor:
        """Return the tensor that was packed; it may take over the memory that it is made from."""
        if self.gaps:
            stored = torch.empty_strided(
                self.size, self.stride, dtype=packed.dtype, device=packed.device
            ).copy_(packed.view(self.size))
        else:  # by `set_` it is no view
            stored = torch.empty(0, dtype=packed.dtype, device=packed.device).set_(
                packed.untyped_storage(), packed.storage_offset(), self.size, self.stride
            )
        return _lazily(stored, self)


def _lazily(tensor: Tensor, layout: Layout) -> Tensor:
    """Return the memory of a lazily conjugated or negated tensor, or of its memory the tensor."""
    tensor = tensor.conj() if layout.conj else tensor
    return negated(tensor) if layout.neg else tensor


def _reach(size: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many numbers lie from a tensor's first to its last."""
    if 0 in size:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))


def _apart(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Return whether, for sure, no two entries of a tensor share memory."""
    reach = 1
    for step, n in sorted((step, n) for n, step in zip(size, stride, strict=True) if n > 1):
        if step < reach:
            return False
        reach += (n - 1) * step
    return True


def refuse_kinds(state: State, store: str) -> None:
    """Refuse tensors whose bytes alone do not bring them back.

    Raises:
        StoreError: If there is one in the state.
    """
    for leaf in state.tensors:
        if is_fake(leaf):
            raise StoreError(
                f"`store` {store} cannot keep fake tensors, which have no bytes. Use "
                "`chain.measure` under FakeTensorMode, or `store='device'`."
            )
        if not is_plain(leaf):
            raise StoreError(
                f"`store` {store} keeps plain strided tensors only, and the state holds a "
                f"{kind_of(leaf)}. Use `store='device'`, or carry the tensors that it is made of "
                "in the state."
            )


def without_tensors(state: State) -> State:
    """Return the state with gaps where its tensors were."""
    return state._replace(
        leaves=tuple(None if isinstance(leaf, Tensor) else (leaf,) for leaf in state.leaves)
    )


def with_tensors(rest: State, tensors: Sequence[Tensor]) -> State:
    """Return the state with tensors in its gaps."""
    coming = iter(tensors)
    return rest._replace(
        leaves=tuple(next(coming) if leaf is None else leaf[0] for leaf in rest.leaves)
    )
