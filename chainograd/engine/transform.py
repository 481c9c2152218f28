"""`grad_transform`: a cotangent as the caller changes it on its way back, checked."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chainograd.engine.run_options import Transform
from chainograd.errors import ChainError
from chainograd.state import Cotangents, versions
from chainograd.torch_internals import pytree


def transformed(transform: Transform, i: int, before: Cotangents, spec: Any) -> Cotangents:
    """Return cotangents of state i as the caller's transform changes them.

    Args:
        transform: The caller's ``grad_transform``.
        i: The state's index.
        before: The cotangents, by the leaf's place.
        spec: How the leaves of the state belong together.

    Raises:
        ChainError: If the transform changes a cotangent in place, or returns another structure.
    """
    listed = [before.get(place) for place in range(spec.num_leaves)]
    tree, counted = pytree.tree_unflatten(listed, spec), versions(listed)
    changed = pytree.tree_leaves(transform(i, tree), is_leaf=_is_none)
    if versions(listed) != counted:
        raise ChainError(
            f"`grad_transform` changed the cotangent of state {i} in place. It may be the very "
            "tensor that is the gradient of a parameter: return a new one, `g * 0.5` instead "
            "of `g.mul_(0.5)`."
        )
    if [g is None for g in changed] != [g is None for g in listed]:
        raise ChainError(
            f"`grad_transform` returned {_count(changed)} for state {i}, but was passed "
            f"{_count(listed)}. Return `g` itself to leave it as it is, or zeros to stop it."
        )
    for g, passed in zip(changed, listed, strict=True):
        if g is not None and _described(g) != _described(passed):
            raise ChainError(
                f"`grad_transform` returned {_described(g)} for state {i}, but was passed "
                f"{_described(passed)}. Return a tensor of the same shape."
            )
    return {place: g for place, g in enumerate(changed) if g is not None}


def _count(listed: list[Any]) -> str:
    count = sum(g is not None for g in listed)
    return f"{count} cotangent{'' if count == 1 else 's'}"


def _described(g: Any) -> str:
    if not isinstance(g, Tensor):
        return f"a {type(g).__name__} for a cotangent"
    return f"a {'complex' if g.is_complex() else 'real'} cotangent of shape {tuple(g.shape)}"


def _is_none(thing: Any) -> bool:
    return thing is None
