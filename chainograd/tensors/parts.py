"""Tensors of any kind as plain ones: sparse, nested, quantized tensors, wrapper subclasses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_PLAIN = (Tensor, Parameter)
_NO_DISPATCH = cast(Any, Tensor).__torch_dispatch__


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is of torch's own class and nothing but strided numbers."""
    return (
        type(tensor) in _PLAIN
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
    )


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """Return the plain strided tensors that together hold what a tensor holds.

    The parts are outside the tensor's graph. They share the tensor's memory wherever torch allows
    it; a lazy conjugation or negation is resolved, and quantized and oneDNN tensors are copied.
    Parts have any dtype, float8 and bits included. The shape and the kind of the tensor are not
    among the parts, except as far as the shapes of the parts tell them.

    Args:
        tensor: A tensor of any kind. COO tensors need not be coalesced. A tensor that is no plain
            one and cannot be taken apart (a fake tensor, a batch of `torch.func.vmap`) is its own
            only part.

    Returns:
        The parts, always in the same order for tensors of the same kind.

    Example:
        >>> [tuple(part.shape) for part in dense_parts(torch.eye(3).to_sparse())]
        [(2, 3), (3,)]
    """
    if not is_plain(tensor) and is_traceable_wrapper_subclass(tensor):
        return _parts_of_wrapper(tensor)
    tensor = tensor.detach()
    if _is_only_named(tensor):
        tensor = tensor.as_subclass(Tensor)
    if is_plain(tensor):
        return [tensor.resolve_conj().resolve_neg()]
    take_apart = _TAKE_APART.get(tensor.layout)
    if take_apart is not None:
        return [part for piece in take_apart(tensor) for part in dense_parts(piece)]
    if tensor.is_nested:  # strided: the rows are views of one buffer
        return [part for row in tensor.unbind() for part in dense_parts(row)]
    if tensor.is_quantized:
        return _parts_of_quantized(tensor)
    return [tensor.resolve_conj().resolve_neg()]


def tensor_bytes(tensor: Tensor) -> int:
    """Return how many bytes the numbers of a tensor of any kind take.

    Example:
        >>> tensor_bytes(torch.eye(3).to_sparse())  # 3 numbers, and 2 indices for each
        60
    """
    if is_plain(tensor) or tensor.is_quantized:  # whose parts would be copies
        return tensor.nbytes
    return sum(part.nbytes for part in dense_parts(tensor))


def kind_of(tensor: Tensor) -> str:
    """Return how an error names the kind of a tensor that is not plain."""
    if type(tensor) not in _PLAIN:
        return f"tensor of the class {type(tensor).__name__}"
    if tensor.is_nested:
        return "nested tensor"
    if tensor.is_quantized:
        return "quantized tensor"
    return f"tensor of the layout {tensor.layout}".replace("torch.", "")


def _is_only_named(tensor: Tensor) -> bool:
    """Return whether a tensor has a class of its own, but torch's memory, as `tv_tensors` do."""
    own: Any = type(tensor)
    if own in _PLAIN or tensor.layout is not torch.strided:
        return False
    return own.__torch_dispatch__ is _NO_DISPATCH


# A jagged tensor may or may not remember these lengths, whatever its values are.
_REMEMBERED = ("_min_seqlen_tensor", "_max_seqlen_tensor")


def _parts_of_wrapper(tensor: Tensor) -> list[Tensor]:
    names, _ = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
    inner = [getattr(tensor, name) for name in names if name not in _REMEMBERED]
    return [part for piece in inner if isinstance(piece, Tensor) for part in dense_parts(piece)]


def _parts_of_quantized(tensor: Tensor) -> list[Tensor]:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scale = torch.tensor(tensor.q_scale(), dtype=torch.float64)
        return [tensor.int_repr(), scale, torch.tensor(tensor.q_zero_point())]
    return [tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]


def _by_rows(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.crow_indices(), tensor.col_indices(), tensor.values()


def _by_columns(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.ccol_indices(), tensor.row_indices(), tensor.values()


_TAKE_APART: dict[torch.layout, Callable[[Tensor], tuple[Tensor, ...]]] = {
    torch.sparse_coo: lambda tensor: (tensor._indices(), tensor._values()),
    torch.sparse_csr: _by_rows,
    torch.sparse_bsr: _by_rows,
    torch.sparse_csc: _by_columns,
    torch.sparse_bsc: _by_columns,
    torch._mkldnn: lambda tensor: (tensor.to_dense(),),  # pyright: ignore[reportAttributeAccessIssue]
}
