"""A run of a block between leaves of its own, and what is refused about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainograd.engine.accumulate import Use
from chainograd.engine.graph import Mark, leaves_used, mark_nodes
from chainograd.errors import ChainError
from chainograd.metering import storages
from chainograd.replay.signature import Signature, signature
from chainograd.state import State, differentiable, refuse_hidden, versions
from chainograd.torch_internals.autograd import (
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
# 5. What cannot be cut is refused: a block that changes an argument in place, that uses a tensor
#    with a graph which it was not passed, or that hides tensors in an object.


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
    def by_leaf(self) -> list[list[Use]]:
        """The uses of each leaf."""
        groups: dict[int, list[Use]] = {}
        for use in self.uses:
            groups.setdefault(id(use[0]), []).append(use)
        return list(groups.values())

    @property
    def counts(self) -> list[int]:
        """How often each leaf is used."""
        return [len(uses) for uses in self.by_leaf]


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
    args, kwargs = entering.tree()
    before = versions(entering.leaves)
    grads = torch.is_grad_enabled()
    torch.clear_autocast_cache()  # a cast of the block's must not serve another block
    set_grad_enabled(True)
    try:
        leaving = State.of(block.function(*args, **kwargs))
    except RuntimeError as error:
        if "in-place operation" not in str(error) or "leaf Variable" not in str(error):
            raise
        raise _changes_argument(block) from error
    finally:
        set_grad_enabled(grads)
        torch.clear_autocast_cache()
    if before != versions(entering.leaves):
        raise _changes_argument(block)
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


def viewed(run: BlockRun) -> list[Tensor]:
    """Return the tensors that entered a block and whose memory is also in what it returned.

    A change in place of what was returned would be one of what entered, and the graph that is cut
    does not show that: `changed_view`. (What is returned as it entered is the caller's tensor.)
    """
    entering = run.entering.tensors
    returned = [t for t in run.leaving.tensors if all(t is not other for other in entering)]
    memory = {storage_id(s) for tensor in returned for s in storages(tensor)}
    return [
        tensor.detach()
        for tensor in entering
        if any(storage_id(s) in memory for s in storages(tensor))
    ]


def changed_view(block: Block) -> ChainError:
    """Return the error for a change in place of a view that a block returned."""
    return ChainError(
        f"The {block} returns a view of one of its arguments, and the step changed one of the two "
        "in place afterwards, so its gradient would be wrong. Change a copy (`x = x + …` instead "
        "of `x += …`), or leave the block out of the chain's `blocks`."
    ).in_step(block.step)
