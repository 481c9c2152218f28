"""Tensors of any kind, taken apart into plain strided tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Parameter

from chainograd.torch_internals.tensors import (
    CACHED_LENGTHS,
    coo_parts,
    has_own_dispatch,
    is_wrapper_subclass,
    storage_id,
)

_PLAIN = (Tensor, Parameter)


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor has one of torch's own classes and holds plain strided numbers."""
    return (
        type(tensor) in _PLAIN
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
    )


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """Return the plain strided tensors that together hold all the values of a tensor.

    The parts are outside the tensor's graph. They share the tensor's memory wherever torch allows
    it; a lazy conjugation or negation is resolved, and quantized and oneDNN tensors are copied.
    Parts may have any dtype, including float8 and bits. The parts do not tell the shape and the
    kind of the tensor, unless the shapes of the parts do.

    Args:
        tensor: A tensor of any kind. COO tensors need not be coalesced. A tensor that cannot be
            taken apart (a fake tensor, a batch of `torch.func.vmap`) is its own only part.

    Returns:
        The parts, always in the same order for tensors of the same kind.

    Example:
        >>> [tuple(part.shape) for part in dense_parts(torch.eye(3).to_sparse())]
        [(2, 3), (3,)]
    """
    if not is_plain(tensor) and is_wrapper_subclass(tensor):
        return _parts_of_wrapper(tensor)
    tensor = tensor.detach()
    if _is_plain_subclass(tensor):
        tensor = tensor.as_subclass(Tensor)
    if is_plain(tensor):
        return [tensor.resolve_conj().resolve_neg()]
    take_apart = _TAKE_APART.get(tensor.layout)
    if take_apart is not None:
        return [part for piece in take_apart(tensor) for part in dense_parts(piece)]
    if tensor.is_mkldnn:
        return [tensor.to_dense()]
    if tensor.is_nested:  # a strided one, whose rows are views of one buffer
        return [part for row in tensor.unbind() for part in dense_parts(row)]
    if tensor.is_quantized:
        return _parts_of_quantized(tensor)
    return [tensor.resolve_conj().resolve_neg()]


def tensor_bytes(tensor: Tensor) -> int:
    """Return how many bytes the values of a tensor of any kind take.

    Example:
        >>> tensor_bytes(torch.eye(3).to_sparse())  # 3 numbers, and 2 indices for each
        60
    """
    if is_plain(tensor) or tensor.is_quantized:  # the parts of a quantized tensor are copies
        return tensor.nbytes
    return sum(part.nbytes for part in dense_parts(tensor))


def may_overlap(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors may share memory; False only if they do not.

    Example:
        >>> x = torch.zeros(4)
        >>> may_overlap(x[:2], x[2:]), may_overlap(x[:3], x[2:])
        (False, True)
    """
    if not (is_plain(a) and is_plain(b)):
        return True
    if storage_id(a.untyped_storage()) != storage_id(b.untyped_storage()):
        return False
    (begin, end), (other_begin, other_end) = _extent(a), _extent(b)
    return begin < other_end and other_begin < end


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return a plain tensor's first byte in its storage, and the byte after its last one."""
    begin, size = tensor.storage_offset(), tensor.element_size()
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    end = begin + last + 1 if tensor.numel() else begin
    return int(begin * size), int(end * size)


def kind_of(tensor: Tensor) -> str:
    """Return the words by which an error names the kind of a tensor that is not plain."""
    if type(tensor) not in _PLAIN:
        return f"tensor of the class {type(tensor).__name__}"
    if tensor.is_nested:
        return "nested tensor"
    if tensor.is_quantized:
        return "quantized tensor"
    return f"tensor of the layout {tensor.layout}".replace("torch.", "")


def _is_plain_subclass(tensor: Tensor) -> bool:
    """Return whether a tensor is plain but for its class, as torchvision's `tv_tensors` are."""
    if type(tensor) in _PLAIN or tensor.layout is not torch.strided:
        return False
    return not has_own_dispatch(type(tensor))


def _parts_of_wrapper(tensor: Tensor) -> list[Tensor]:
    names, _ = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
    inner = [getattr(tensor, name) for name in names if name not in CACHED_LENGTHS]
    return [part for piece in inner if isinstance(piece, Tensor) for part in dense_parts(piece)]


def _parts_of_quantized(tensor: Tensor) -> list[Tensor]:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scale = torch.tensor(tensor.q_scale(), dtype=torch.float64, device="cpu")
        return [tensor.int_repr(), scale, torch.tensor(tensor.q_zero_point(), device="cpu")]
    return [tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]


def _by_rows(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.crow_indices(), tensor.col_indices(), tensor.values()


def _by_columns(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.ccol_indices(), tensor.row_indices(), tensor.values()


_TAKE_APART: dict[torch.layout, Callable[[Tensor], tuple[Tensor, ...]]] = {
    torch.sparse_coo: coo_parts,
    torch.sparse_csr: _by_rows,
    torch.sparse_bsr: _by_rows,
    torch.sparse_csc: _by_columns,
    torch.sparse_bsc: _by_columns,
}
