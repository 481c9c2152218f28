"""Floating-point operations, counted from shapes: on fake tensors too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from typing_extensions import Self

from chainograd.torch_internals.modes import LightDispatchMode

_aten: Any = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


# Torch's registry has the kernels of accelerators only.
_OWN: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class CountedFlops(LightDispatchMode):
    """Counts the floating-point operations of products: matmuls, convolutions, attention.

    A multiplication and an addition are two. Operations that torch's registry does not know
    (activations, norms) count nothing.

    Attributes:
        flops: How many there were so far.

    Example:
        >>> with CountedFlops() as counted:
        ...     y = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> counted.flops
        48
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", None)
        if packet in _OWN:
            self.flops += _OWN[packet](*args, **kwargs)
        elif packet in flop_registry:
            self.flops += int(flop_registry[packet](*args, **kwargs, out_val=out))
        return out

    def lap(self) -> int:
        """Return the count so far, and start again from zero."""
        flops, self.flops = self.flops, 0
        return flops
