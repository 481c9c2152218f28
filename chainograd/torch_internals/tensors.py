"""Tensors: how often they changed, which memory they share, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Generator, Tensor
from torch.autograd import grad_mode
from torch.utils import _python_dispatch

version: Callable[[Tensor], int] = attrgetter("_version")
"""Return how often a tensor was changed in place.

Torch does not count changes of tensors made in inference mode, and raises a RuntimeError for them.

Private: `torch.Tensor._version`. Public: none.
"""

preserve_version: Callable[[Tensor], AbstractContextManager[None]] = (
    grad_mode._unsafe_preserve_version_counter
)
"""Return a context in which changes of a tensor are not counted.

Private: `torch.autograd.grad_mode._unsafe_preserve_version_counter`. Public: none.
"""

storage_id: Callable[[torch.UntypedStorage], int] = attrgetter("_cdata")
"""Return a number that is equal for all Python objects of one storage.

Private: `torch.UntypedStorage._cdata`. Public: `data_ptr()`, which fake tensors do not have and
which is 0 for every empty storage.
"""

is_wrapper_subclass: Callable[[object], bool] = _python_dispatch.is_traceable_wrapper_subclass
"""Return whether a tensor wraps other tensors and can be taken apart by `__tensor_flatten__`.

Private: `torch.utils._python_dispatch.is_traceable_wrapper_subclass`. Public: none.
"""

CACHED_LENGTHS = ("_min_seqlen_tensor", "_max_seqlen_tensor")
"""Names of the parts of a jagged tensor that it may compute at any time from its other parts.

Private: attributes of `torch.nested._internal.nested_tensor.NestedTensor`. Public: none.
"""

negated: Callable[[Tensor], Tensor] = torch.ops.aten._neg_view.default
"""Return a lazily negated view of a tensor.

Private: the operator `aten::_neg_view`. Public: none; `torch.neg` computes the values at once.
"""


def version_or_zero(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; 0 if it was made in inference mode.

    Private: `torch.Tensor._version`. Public: none.
    """
    return 0 if tensor.is_inference() else version(tensor)


def coo_parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices and values of a COO tensor, which need not be coalesced.

    Private: `torch.Tensor._indices`, `torch.Tensor._values`. Public: `indices()` and `values()`,
    for coalesced tensors only.
    """
    return tensor._indices(), tensor._values()


def has_own_dispatch(cls: type) -> bool:
    """Return whether a class of tensors replaces what operations do below autograd.

    Private: `torch.Tensor.__torch_dispatch__`, what `Tensor` itself has there. Public: none.
    """
    tensor: Any = cls
    return tensor.__torch_dispatch__ is not cast(Any, Tensor).__torch_dispatch__


def mps_generator(mps: Any) -> Generator:
    """Return the generator of the global random stream of Apple's GPU, from `torch.mps`.

    Private: `torch.mps._get_default_mps_generator`. Public: none.
    """
    return mps._get_default_mps_generator()
