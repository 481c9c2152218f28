"""Transforms of cotangents in the backward pass, for ``grad_transform=`` of a chain.

A transform is a function ``f(i, g) -> g``. Here g is the cotangent of the state that enters step i,
structured like that state, with None for a leaf without a cotangent. It is the whole cotangent,
from later steps and from losses on the state itself. The cotangent of the result is not
transformed. To apply two transforms, write ``lambda i, g: second(i, first(i, g))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from chainograd.torch_internals import pytree

CotangentTransform = Callable[[int, Any], Any]
NormOf = Literal["state", "sample"]


def scaled(factor: float | Callable[[int], float]) -> CotangentTransform:
    r"""Return a transform that multiplies the cotangent at every node.

        g_i  ->  factor(i) g_i

    This scales the whole Jacobian of each step. Step j's part of a parameter's gradient is
    multiplied by the factors of all later nodes, j+1 … M-1. With one number gamma that is
    gamma^(M-1-j), a discount that keeps long products from growing. To scale the network's
    Jacobian but not the linear path, use `ScaledInput`.

    Args:
        factor: A number, or a function of the step's index.

    Raises:
        ValueError: If the number is not finite.

    Example:
        >>> from chainograd import CheckpointedChain
        >>> x = torch.ones((), requires_grad=True)
        >>> CheckpointedChain(lambda x, i: 3 * x, 4, grad_transform=scaled(0.5))(x).backward()
        >>> x.grad == 1.5**4
        tensor(True)
    """
    if not callable(factor) and not math.isfinite(factor):
        raise ValueError(f"`factor` must be a finite number or a function of i, got {factor!r}.")

    def transform(i: int, g: Any) -> Any:
        by = factor(i) if callable(factor) else factor
        return pytree.tree_map_only(Tensor, lambda leaf: leaf * by, g)

    return transform


def clipped(max_norm: float, *, of: NormOf = "state") -> CotangentTransform:
    r"""Return a transform that clips the norm of the cotangent at every node.

        g  ->  min(1, max_norm / norm(g)) g

    The norm is over all leaves. A cotangent within ``max_norm`` does not change in any bit, and a
    cotangent that is not finite stays so. If the loss is scaled, for example by a ``GradScaler``,
    scale ``max_norm`` in the same way.

    Args:
        max_norm: The largest Euclidean norm, above 0.
        of: ``"state"`` clips one norm of the whole batch, ``"sample"`` one norm for each entry of
            the leaves' first dimension.

    Raises:
        ValueError: If ``max_norm`` or ``of`` is out of range. In the backward pass, with
            ``of="sample"``, if the leaves do not share a batch dimension.

    Example:
        >>> clipped(1.0)(0, {"x": torch.tensor([3.0, 4.0]), "count": None})
        {'x': tensor([0.6000, 0.8000]), 'count': None}
    """
    _refuse_unless_positive("max_norm", max_norm)
    if of not in get_args(NormOf):
        raise ValueError(f"`of` must be one of {get_args(NormOf)}, got {of!r}.")
    norm_of = _norm if of == "state" else _norms_of_samples

    def transform(i: int, g: Any) -> Any:
        leaves = [leaf for leaf in pytree.tree_leaves(g) if isinstance(leaf, Tensor)]
        if not leaves:
            return g
        by = (max_norm / norm_of(leaves)).clamp(max=1)
        return pytree.tree_map_only(Tensor, lambda leaf: leaf * _beside(leaf, by), g)

    return transform


def clamped(max_value: float) -> CotangentTransform:
    """Return a transform that clamps every entry of the cotangent at every node.

    This changes the direction of the cotangent; `clipped` does not.

    Args:
        max_value: The largest absolute value of an entry, above 0.

    Raises:
        ValueError: If ``max_value`` is out of range; in the backward pass, if a cotangent is
            complex.

    Example:
        >>> clamped(1.0)(0, torch.tensor([-3.0, 0.5]))
        tensor([-1.0000,  0.5000])
    """
    _refuse_unless_positive("max_value", max_value)

    def transform(i: int, g: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda leaf: _clamp(leaf, max_value), g)

    return transform


def _clamp(leaf: Tensor, max_value: float) -> Tensor:
    if leaf.is_complex():
        raise ValueError(
            f"`clamped` got a complex cotangent, {leaf.dtype}, whose entries cannot be compared "
            "with `max_value`. Take `clipped`, which bounds the norm, or write your own transform."
        )
    return leaf.clamp(-max_value, max_value)


def _refuse_unless_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(
            f"`{name}` must be above 0, got {value!r}. To stop the gradient at a step, leave the "
            "step out of `grad_steps`."
        )


def _norm(leaves: list[Tensor]) -> Tensor:
    """Return the norm of all entries of all leaves."""
    return _joined([torch.linalg.vector_norm(leaf, dtype=_wide(leaf)) for leaf in leaves])


def _norms_of_samples(leaves: list[Tensor]) -> Tensor:
    """Return ``[N]``: the norm of each sample's entries in all leaves."""
    shapes = [tuple(leaf.shape) for leaf in leaves]
    if () in shapes or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            f'`clipped(…, of="sample")` needs leaves whose first dimension is the batch, got '
            f'cotangents of shapes {shapes}. Use `of="state"`, or write your own transform.'
        )
    flat = [leaf.reshape(len(leaf), -1) for leaf in leaves]
    return _joined([torch.linalg.vector_norm(leaf, dim=1, dtype=_wide(leaf)) for leaf in flat])


def _joined(norms: list[Tensor]) -> Tensor:
    together = torch.stack([norm.to(norms[0].device) for norm in norms])
    return torch.linalg.vector_norm(together, dim=0)


def _wide(leaf: Tensor) -> torch.dtype:
    return torch.promote_types(leaf.dtype, torch.float32)  # float16 ends at 65504


def _beside(leaf: Tensor, by: Tensor) -> Tensor:
    """Return the factor, or the factors of the samples, in a shape that broadcasts with a leaf."""
    shape = (-1, *[1] * (leaf.dim() - 1)) if by.dim() else ()
    return by.to(leaf.device, leaf.dtype).view(shape)
