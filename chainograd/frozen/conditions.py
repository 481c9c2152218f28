"""Which layers and steps may save less: conditions on modules, weights and constants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def takes_fast_path(modes: Iterable[tuple[nn.Module, bool]]) -> bool:
    """Return whether one of some modules calls a fused kernel unless a function mode is in force.

    Args:
        modes: Modules, and whether each is in training.
    """
    return any(isinstance(module, _FUSED) for module, _ in modes)


def is_frozen(x: Tensor, *weights: Tensor | None) -> bool:
    """Return whether the input of a layer requires a gradient and none of its weights does."""
    differentiable = x.requires_grad and x.is_floating_point() and x.numel() > 0
    return differentiable and not any(w is not None and w.requires_grad for w in weights)


def is_small_constant(other: Any, y: Tensor) -> bool:
    """Return whether a factor or summand of y is a number, or a small tensor without a graph."""
    if isinstance(other, (int, float)):
        return True
    if not isinstance(other, Tensor) or other.requires_grad or other.device != y.device:
        return False
    broadcasts = len(other.shape) <= y.dim() and all(
        a in (1, b) for a, b in zip(other.shape[::-1], y.shape[::-1], strict=False)
    )
    return broadcasts and other.is_floating_point() and 8 * other.numel() <= y.numel()
