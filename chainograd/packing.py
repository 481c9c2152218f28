"""A state as bytes, and what the bytes mean: for keeping it in other memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chainograd.states import State

_is_dense = torch.ops.aten.is_non_overlapping_and_dense.default


@dataclass(slots=True)
class Layout:
    """What the bytes of a tensor mean."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """Return a dense tensor's layout."""
        return cls(tensor.size(), tensor.stride(), tensor.dtype, tensor.device)

    def empty(self, device: torch.device | None = None) -> Tensor:
        """Return an unset tensor of this layout."""
        where = self.device if device is None else device
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=where)


def dense(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy of its values, without gaps, overlaps and lazy conjugation."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return tensor if _is_dense(tensor) else tensor.clone()


def flat(tensor: Tensor) -> Tensor:
    """Return a dense tensor's memory as one dimension, in the order it lies there."""
    return tensor.as_strided((tensor.numel(),), (1,))


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
