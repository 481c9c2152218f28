"""States: the pytrees that steps take and return, flattened into leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from chainograd.captured.contents import contents
from chainograd.errors import ChainError
from chainograd.torch_internals import pytree
from chainograd.torch_internals.tensors import version, version_or_zero

Cotangents = dict[int, Tensor]  # of a state, by the place of the leaf


class State(NamedTuple):
    """A state, flattened: its leaves (tensors and other things) and how they belong together."""

    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, tree: Any) -> State:
        """Flatten a pytree. This copies its containers and none of its tensors."""
        if isinstance(tree, Tensor):
            return cls((tree,), _LEAF)
        leaves, spec = pytree.tree_flatten(tree)
        return cls(tuple(leaves), spec)

    def tree(self) -> Any:
        """Return the state as the user's pytree."""
        if self.spec is _LEAF:
            return self.leaves[0]
        if self.spec is _NOTHING:
            return (), {}
        return pytree.tree_unflatten(list(self.leaves), self.spec)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def device(self) -> torch.device:
        """The device of the first tensor; the CPU if the state has no tensor."""
        return next((leaf.device for leaf in self.tensors), torch.device("cpu"))

    def detached(self) -> State:
        """Return the state outside its graph; it shares the memory of the tensors."""
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return State(tuple(leaves), self.spec)

    def entering(self, wanted: list[bool]) -> State:
        """Return the state as leaves of a new graph, which require a gradient where wanted."""
        # Detached, so that the graph of this step is freed as soon as its cotangent is known:
        # holding two steps' graphs at once is the memory that the chain exists to save.
        return State(tuple(map(_entering, self.leaves, wanted)), self.spec)


_LEAF = pytree.tree_structure(0)
_NOTHING = pytree.tree_structure(((), {}))
NO_ARGUMENTS = State((), _NOTHING)


def differentiable(leaf: Any) -> bool:
    """Return whether a leaf of a state can carry a gradient."""
    return isinstance(leaf, Tensor) and (leaf.dtype.is_floating_point or leaf.dtype.is_complex)


def _entering(leaf: Any, wanted: bool) -> Any:
    if wanted:
        return detached_leaf(leaf)
    return leaf.detach() if differentiable(leaf) else leaf


def wants_gradient(leaf: Any) -> bool:
    """Return whether a leaf is a tensor that requires a gradient."""
    return isinstance(leaf, Tensor) and leaf.requires_grad


def versions(things: Sequence[Any]) -> list[int]:
    """Return how often each tensor among some things was changed in place, as torch counts it."""
    try:
        if len(things) == 1 and isinstance(things[0], Tensor):  # called eight times a step
            return [version(things[0])]
        return [version(thing) for thing in things if isinstance(thing, Tensor)]
    except RuntimeError:  # torch counts no changes of tensors made in inference mode
        return [version_or_zero(thing) for thing in things if isinstance(thing, Tensor)]


def detached_leaf(tensor: Tensor) -> Tensor:
    """Return a leaf with a tensor's values and memory, without its graph and its hooks."""
    return full_view(tensor.detach()).requires_grad_()


def full_view(tensor: Tensor) -> Tensor:
    """Return a view of the whole tensor, with the same strides; it has a place in the graph.

    A view, because autocast caches the cast of every leaf that is not a view: all uses would share
    one low-precision cast, and their gradients would be added up in that precision. `view_as`
    chooses new strides for dimensions of size 1, and torch would take a batch of one in
    channels_last for another memory format; then the view is an alias.
    """
    if tensor.layout is not torch.strided:  # autocast casts strided tensors only
        return tensor
    view = tensor.view_as(tensor)
    return view if tensor.is_nested or view.stride() == tensor.stride() else _alias(tensor)


_alias = torch.ops.aten.alias.default


_SEEN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device,
         Tensor, Module, FunctionType)  # fmt: skip


def refuse_hidden(leaves: Iterable[Any], carries: Callable[[Any], bool], whose: str) -> None:
    """Refuse leaves of a state that are objects with tensors in them.

    Args:
        leaves: The leaves.
        carries: Tells whether a tensor inside a leaf may carry a gradient.
        whose: The words by which the error names the state.

    Raises:
        ChainError: If there is such an object: the gradient through its tensors would be lost.
    """
    for leaf in leaves:
        if not isinstance(leaf, _SEEN) and any(map(carries, pytree.tree_leaves([*contents(leaf)]))):
            raise ChainError(
                f"{whose} holds an object of the class {type(leaf).__name__} with tensors in it. "
                "The chain cannot send a gradient through the object. Carry the tensors in "
                "tuples, lists, dicts or named tuples, or register the class: "
                "torch.export.register_dataclass, or torch.utils._pytree.register_pytree_node."
            )


def same_leaves(a: State, b: State) -> bool:
    """Return whether two states hold the same objects in the same places."""
    same = len(a.leaves) == len(b.leaves) and all(
        one is two for one, two in zip(a.leaves, b.leaves, strict=True)
    )
    return same and a.spec == b.spec
