"""`torch.func` transforms and forward-mode AD: whether they are at work, and on which tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_C: Any = torch._C

transforms_active: Callable[[], bool] = _C._are_functorch_transforms_active
"""Return whether the code runs inside a transform of `torch.func`.

Private: `torch._C._are_functorch_transforms_active`. Public: none.
"""

is_wrapped: Callable[[Tensor], bool] = _C._functorch.is_functorch_wrapped_tensor
"""Return whether a tensor is one that a transform of `torch.func` has wrapped.

Private: `torch._C._functorch.is_functorch_wrapped_tensor`. Public: none.
"""

is_batch_of_gradients: Callable[[Tensor], bool] = _C._functorch.is_legacy_batchedtensor
"""Return whether a tensor is a batch of gradients that `is_grads_batched=True` made.

Private: `torch._C._functorch.is_legacy_batchedtensor`. Public: none.
"""


def forward_ad_active() -> bool:
    """Return whether the code runs inside `torch.autograd.forward_ad.dual_level`.

    Private: `torch.autograd.forward_ad._current_level`. Public: none.
    """
    return forward_ad._current_level >= 0


@contextmanager
def outside_vmap() -> Iterator[None]:
    """Let a block draw random numbers although it runs inside `is_grads_batched=True`.

    Private: `torch._C._vmapmode_increment_nesting`, `torch._C._vmapmode_decrement_nesting`. Public:
    none.
    """
    levels = _C._vmapmode_increment_nesting()
    for _ in range(levels):
        _C._vmapmode_decrement_nesting()
    try:
        yield
    finally:
        for _ in range(levels - 1):
            _C._vmapmode_increment_nesting()
