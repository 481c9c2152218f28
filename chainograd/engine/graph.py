"""A walk through a step's graph: the leaves it uses, and marks that no other step may meet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from chainograd.engine.accumulate import Use
from chainograd.errors import ChainError
from chainograd.torch_internals.autograd import AccumulateGrad

# Note [Kept tensors]
# In the plain loop a tensor that step 0 computed and kept (merged adapter weights, keys and values
# of a prompt) takes the gradients of all later steps to what it was computed from. In a chain the
# tensor is there already when a later step runs again. So the nodes of every graph are marked, and
# a step whose graph leads to a marked node is refused. What is kept and never used again, as by a
# hook that collects features, leads nowhere.

_MARK = "chainograd"


class Mark(NamedTuple):
    """What the nodes of a step's graph are marked with.

    Attributes:
        run: Stands for one call of a chain.
        step: The step.
    """

    run: object
    step: int


def leaves_used(outputs: Iterable[Any], mark: Mark | None) -> tuple[list[Use], list[Any]]:
    """Return every use of a leaf in the graph of the tensors among ``outputs``, and its nodes.

    The nodes are marked.

    A leaf requiring a gradient that is itself among the outputs is used too. Costs about half a
    microsecond a node.

    Raises:
        ChainError: If the graph leads to one that is marked already.
    """
    uses: list[Use] = []
    stack: list[Any] = []
    for output in outputs:
        if isinstance(output, Tensor) and output.requires_grad:
            if output.grad_fn is None:
                uses.append((output, None, 0))
            else:
                stack.append(output.grad_fn)
    seen = dict.fromkeys(stack)  # in the order in which they are met
    while stack:
        node = stack.pop()
        for place, (parent, _) in enumerate(node.next_functions):
            if type(parent) is AccumulateGrad:
                uses.append((parent.variable, node, place))
            elif parent is not None and parent not in seen:
                seen[parent] = None
                stack.append(parent)
    if mark is not None:
        mark_nodes(seen, mark)
    return uses, list(seen)


def mark_nodes(nodes: Iterable[Any], mark: Mark) -> None:
    """Mark nodes of a graph.

    Raises:
        ChainError: If one of them is marked already.
    """
    tables = [(node, node.metadata) for node in nodes]
    for node, table in tables:
        if _MARK in table:
            raise ChainError(_kept(node, table[_MARK], mark)).in_step(mark.step)
    for _, table in tables:
        table[_MARK] = mark


def _kept(node: Any, before: Mark, now: Mark) -> str:
    by = f"(by {node.name().removesuffix('Backward0')})"
    where = f"step {before.step}" if before.run is now.run else "a step of an earlier call"
    if before == now:
        where = f"an earlier run or slice of step {before.step}"
    return (
        f"Step {now.step} uses a tensor that {where} computed {by} and kept. What it was computed "
        "from would get no gradient through it: when steps run again, they find it there. Compute "
        "it before the chain and pass it as an argument, carry it in the state, or compute it in "
        "every step; if its gradient is not wanted, keep `tensor.detach()`."
    )
