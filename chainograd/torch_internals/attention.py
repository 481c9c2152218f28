"""The fused kernels of attention: what they are called, and what they are given."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

_NAMES = (
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_flash_attention_forward", "_efficient_attention_forward", "_cudnn_attention_forward",
)  # fmt: skip

FUSED_KERNELS = frozenset(
    getattr(packet, overload)
    for packet in (getattr(torch.ops.aten, name, None) for name in _NAMES)
    if packet is not None
    for overload in packet.overloads()
    if not overload.endswith("out")
)
"""The operators that `scaled_dot_product_attention` runs, as far as this version of torch has them.

They return attention's result, the log-sum-exp of its rows and the state of their dropout. Those of
them that a backward pass needs are saved in the graph.

Private: the operators `aten::_scaled_dot_product_*_attention` and `aten::_*_attention_forward`.
Public: none.
"""

LOG_SUM_EXP = "compute_log_sumexp"
"""Name of the argument by which some of the kernels leave out what only a backward pass needs.

Private: the argument of the operators. Public: none.
"""


def named_arguments(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of an operator by name; those left out are not among them.

    Private: `torch._ops.OpOverload._schema`. Public: none.
    """
    return {**dict(zip(_argument_names(kernel), args, strict=False)), **kwargs}


def may_leave_out_log_sum_exp(kernel: Any) -> bool:
    """Return whether an operator has the argument `LOG_SUM_EXP`.

    Private: `torch._ops.OpOverload._schema`. Public: none.
    """
    return LOG_SUM_EXP in _argument_names(kernel)


@lru_cache(maxsize=64)
def _argument_names(kernel: Any) -> tuple[str, ...]:
    return tuple(argument.name for argument in kernel._schema.arguments)
