"""A run of a block between leaves of its own, and what is refused about it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainograd.engine.accumulate import Use
from chainograd.engine.graph import Mark, leaves_used, mark_nodes
from chainograd.errors import ChainError
from chainograd.metering import storages
from chainograd.replay.signature import Signature, signature
from chainograd.state import (
    State,
    differentiable,
    refuse_hidden,
    same_leaves,
    versions,
    wants_gradient,
)
from chainograd.tensors.parts import may_overlap
from chainograd.torch_internals.autograd import (
    hooks_of,
    next_sequence_number,
    sequence_number,
    set_grad_enabled,
)
from chainograd.torch_internals.tensors import storage_id

# Note [Blocks]
# 1. A block is a call of a module in a step. In a graph that is cut into blocks, one node stands
#    for each call: `BlockFunction`. Between its backward pass and the block's first run, the
#    block's graph does not exist.
# 2. The first run is one between leaves of its own, with a graph that saves nothing: note [First
#    runs]. That graph tells which tensors the block uses, and how often.
# 3. The node has an edge for every *use* of a tensor, and returns one gradient for each, in the
#    order in which they arrive in the block's graph. So autograd adds them up as in the plain loop,
#    where a tensor that a block uses twice, and a skip connection uses once more, has a sum of
#    three terms: note [Use by use].
# 4. Random numbers, settings and modes are noted before each call and put in force for its rerun.
#    The rerun's result is compared with the first one's.
# 5. What cannot be cut is refused: a block that changes an argument in place or puts a hook on it,
#    that uses a tensor with a graph which it was not passed, that keeps an argument's graph for use
#    outside of it, or that hides tensors in an object.
# 6. The leaves need not be met in the same order in both runs. An argument is told by its place, a
#    parameter by its identity. Leaves that the block makes itself are others in each run. They
#    follow in the order in which they are met.
# 7. A tensor that is passed twice is one leaf, for in the plain loop it has one sum of gradients.
# 8. A step that takes a gradient of its own through its blocks is not cut. This shows in its first
#    run, which is then made once more: note [First runs], 4.


@dataclass(slots=True, eq=False)
class BlockRun:
    """A run of a block between leaves of its own.

    Attributes:
        entering: The leaves that its graph begins with.
        leaving: What it returned, with its graph.
        uses: All uses of leaves in the graph.
        signature: What the graph is like.
    """

    entering: State
    leaving: State
    uses: list[Use]
    signature: Signature | None

    @property
    def by_leaf(self) -> dict[Hashable, list[Use]]:
        """The uses of each leaf, by what tells the leaf in every run: note [Blocks], 6."""
        places: dict[int, Hashable] = {}
        for at, leaf in enumerate(self.entering.leaves):
            places.setdefault(id(leaf), f"argument {at}")
        groups: dict[Hashable, list[Use]] = {}
        for use in self.uses:
            groups.setdefault(places.get(id(use[0]), id(use[0])), []).append(use)
        return groups

    @property
    def counts(self) -> dict[Hashable, int]:
        """How often each leaf is used."""
        return {key: len(uses) for key, uses in self.by_leaf.items()}

    def in_order(self, keys: Iterable[Hashable]) -> list[list[Use]]:
        """Return the uses of each leaf in the order of another run of the block.

        Args:
            keys: What tells the leaves of that run.
        """
        groups, keys = self.by_leaf, list(keys)
        others = iter([uses for key, uses in groups.items() if key not in keys])
        return [groups[key] if key in groups else next(others, []) for key in keys]


class Block(NamedTuple):
    """A block in a step.

    Attributes:
        name: Its name in the model.
        step: The step's index.
        function: What makes the call.
    """

    name: str
    step: int
    function: Callable[..., Any]

    def __str__(self) -> str:
        """Return the words that errors name it by."""
        return f"block `{self.name}` of step {self.step}"


def run_block(block: Block, entering: State, mark: Mark, *, signed: bool) -> BlockRun:
    """Run a block between leaves.

    Args:
        block: The block.
        entering: The leaves, as positional and keyword arguments.
        mark: For the nodes of the graph.
        signed: Whether its graph has the same nodes in each run.

    Raises:
        ChainError: If it cannot be cut: note [Blocks], 5.
    """
    begun = next_sequence_number()
    args, kwargs = entering.tree()  # in new containers
    before = versions(entering.leaves)
    grads, left_on = torch.is_grad_enabled(), True
    torch.clear_autocast_cache()  # a cast of the block's must not serve another block
    set_grad_enabled(True)
    try:
        leaving = State.of(block.function(*args, **kwargs))
        left_on = torch.is_grad_enabled()
    except RuntimeError as error:
        if "in-place operation" not in str(error) or "leaf Variable" not in str(error):
            raise
        raise _changes_argument(block) from error
    finally:
        set_grad_enabled(grads)
        torch.clear_autocast_cache()
    if before != versions(entering.leaves):
        raise _changes_argument(block)
    _refuse_lost(block, entering, State.of((args, kwargs)))
    if not left_on:
        raise ChainError(
            f"The {block} switches gradients off and leaves them so. Switch them off in a `with` "
            "block: `with torch.no_grad(): …`."
        ).in_step(block.step)
    refuse_hidden(
        [leaf for leaf in leaving.leaves if all(leaf is not old for old in entering.leaves)],
        differentiable, f"What {block} returns",
    )  # fmt: skip
    uses, nodes = leaves_used(leaving.leaves, None)
    if any(sequence_number(node) < begun for node in nodes):
        raise ChainError(
            f"The {block} uses a tensor that something else in the step computed and that was not "
            "passed to it, so the tensor's gradient would be lost. Pass the tensor to the block as "
            "an argument, or leave the block out of the chain's `blocks`."
        ).in_step(block.step)
    mark_nodes(nodes, mark)
    return BlockRun(entering, leaving, uses, signature(nodes) if signed else None)


def _changes_argument(block: Block) -> ChainError:
    return ChainError(
        f"The {block} changes one of its arguments in place, but its gradient needs the argument "
        "again. Return a new tensor (`x = x + …` instead of `x += …`), or leave the block out of "
        "the chain's `blocks`."
    ).in_step(block.step)


def entered(outside: State) -> State:
    """Return what enters a block as leaves of its own: note [Blocks], 7.

    Args:
        outside: What the block is called with.
    """
    leaves = outside.entering([wants_gradient(leaf) for leaf in outside.leaves]).leaves
    once: dict[int, Any] = {}
    pairs = zip(outside.leaves, leaves, strict=True)
    return outside._replace(leaves=tuple(once.setdefault(id(old), new) for old, new in pairs))


def _refuse_lost(block: Block, entering: State, after: State) -> None:
    """Refuse what a block does to its arguments that would be lost outside of it."""
    if not same_leaves(after, entering):
        raise ChainError(
            f"The {block} changes a list or dict among its arguments, and the step would not see "
            "the change. Return what is new, or leave the block out of the chain's `blocks`."
        ).in_step(block.step)
    if any(isinstance(leaf, Tensor) and hooks_of(leaf) for leaf in entering.leaves):
        raise ChainError(
            f"The {block} registers a hook on one of its arguments, which would see only a part of "
            "the gradient. Register it before the block is called, or leave the block out of the "
            "chain's `blocks`."
        ).in_step(block.step)


def viewed(run: BlockRun) -> list[Tensor]:
    """Return tensors whose memory is also in what a block returned, as another tensor.

    A change in place of one would be a change of the other, and the graph that is cut does not show
    that: `changed_view`. (What is returned as it entered is the caller's tensor.)
    """
    entering = run.entering.tensors
    returned = {id(tensor): tensor for tensor in run.leaving.tensors}
    for tensor in entering:
        returned.pop(id(tensor), None)
    outputs = list(returned.values())
    memory = [{storage_id(s) for s in storages(tensor)} for tensor in outputs]
    known: set[int] = set().union(*memory)
    found = [t for t in entering if any(storage_id(s) in known for s in storages(t))]
    if len(known) < sum(map(len, memory)):
        found += [t for t in outputs if any(may_overlap(t, u) for u in outputs if u is not t)]
    return [tensor.detach() for tensor in found]


def changed_view(block: Block) -> ChainError:
    """Return the error for a change in place of a view that a block returned."""
    return ChainError(
        f"The {block} returns a view of one of its arguments or of something else that it returns, "
        "and the step changed one of the two in place afterwards, so its gradient would be wrong. "
        "Change a copy (`x = x + …` instead of `x += …`), or leave the block out of the chain's "
        "`blocks`."
    ).in_step(block.step)
