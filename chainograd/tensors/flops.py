"""Floating-point operations, counted from shapes: on fake tensors too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry
from typing_extensions import Self

from chainograd.torch_internals.modes import LightDispatchMode

_aten: Any = torch.ops.aten


# Torch counts attention's kernels for accelerators and not the one for CPUs, whose arguments are
# the same.
FORMULAS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
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
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        return out

    def lap(self) -> int:
        """Return the count so far, and start again from zero."""
        flops, self.flops = self.flops, 0
        return flops
