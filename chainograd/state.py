"""States as steps are handed them, and what the engine asks of their leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.nn import Module

from chainograd.captured.parts import parts
from chainograd.errors import ChainError

Cotangents = dict[int, Tensor]  # of a state, by the leaf's place


class State(NamedTuple):
    """A state, flattened: its leaves (tensors and whatever else) and how they belong together."""

    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, tree: Any) -> State:
        """Flatten a pytree; containers are thereby copied, tensors are not."""
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
        """Where the first tensor is; the CPU if there is none."""
        return next((leaf.device for leaf in self.tensors), torch.device("cpu"))

    def detached(self) -> State:
        """Return the state outside its graph; the memory is shared."""
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return State(tuple(leaves), self.spec)

    def entering(self, wanted: list[bool]) -> State:
        """Return the state as leaves of a new graph, requiring a gradient where it is wanted."""
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
        return stand_in(leaf)
    return leaf.detach() if differentiable(leaf) else leaf


def wants_gradient(leaf: Any) -> bool:
    """Return whether a leaf is a tensor that requires a gradient."""
    return isinstance(leaf, Tensor) and leaf.requires_grad


def versions(tensors: Sequence[Any]) -> list[int]:
    """Return how often each tensor among the things was changed in place, as torch counts it."""
    try:
        if len(tensors) == 1 and isinstance(tensors[0], Tensor):  # asked eight times a step
            return [tensors[0]._version]
        return [tensor._version for tensor in tensors if isinstance(tensor, Tensor)]
    except RuntimeError:  # of tensors made in inference mode torch does not count
        found = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
        return [0 if tensor.is_inference() else tensor._version for tensor in found]


def stand_in(tensor: Tensor) -> Tensor:
    """Return a leaf with the tensor's values, outside its graph and without its hooks."""
    return aside(tensor.detach()).requires_grad_()


def aside(tensor: Tensor) -> Tensor:
    """Return a view of the whole tensor, with its strides; its graph leads on to the tensor.

    A view, because autocast caches the cast of every leaf that is not a view: all uses would share
    one cast, and their gradients would be added up in its few bits. `view_as` would choose the
    strides of dimensions of size 1 anew, and torch would take channels_last at batch 1 for another
    memory format.
    """
    if tensor.layout is not torch.strided:  # autocast leaves others alone
        return tensor
    view = tensor.view_as(tensor)
    return view if tensor.is_nested or view.stride() == tensor.stride() else _alias(tensor)


_alias = torch.ops.aten.alias.default


_SEEN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device,
         Tensor, Module, FunctionType)  # fmt: skip


def refuse_hidden(leaves: Iterable[Any], carries: Callable[[Any], bool], whose: str) -> None:
    """Refuse objects in a state that hold tensors where the chain cannot see them.

    Args:
        leaves: Of the state.
        carries: Whether a tensor inside of a leaf may carry a gradient.
        whose: The state, for the error.

    Raises:
        ChainError: If there is one: the gradient through its tensors would be lost.
    """
    for leaf in leaves:
        if not isinstance(leaf, _SEEN) and any(map(carries, pytree.tree_leaves([*parts(leaf)]))):
            raise ChainError(
                f"{whose} holds a {type(leaf).__name__} with tensors in it, which the gradient "
                "would not pass. Carry them in tuples, lists, dicts or named tuples, or register "
                "the class: torch.export.register_dataclass, or "
                "torch.utils._pytree.register_pytree_node."
            )


def same_leaves(a: State, b: State) -> bool:
    """Return whether two states hold the same things in the same places."""
    same = len(a.leaves) == len(b.leaves) and all(
        one is two for one, two in zip(a.leaves, b.leaves, strict=True)
    )
    return same and a.spec == b.spec
