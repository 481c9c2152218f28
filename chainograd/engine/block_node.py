"""The node that stands for a block in a step's graph: note [Blocks]."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from chainograd.engine.block_run import BlockRun
from chainograd.engine.first_run import Asking
from chainograd.engine.uses import watched
from chainograd.errors import ChangedTensorError
from chainograd.state import State, wants_gradient
from chainograd.torch_internals.autograd import run_backward


class Again(Protocol):
    """Runs a block once more, with its graph, and compares the result."""

    def __call__(self) -> BlockRun:
        """Return the run. What it needs is freed, so this can be called once."""
        ...


@dataclass(slots=True, eq=False)
class Standing:
    """What stands for a block in a step's graph.

    Attributes:
        asking: Refuses gradients while the step runs, and in graphs that are discarded.
        again: Runs the block once more; None in a graph that is discarded.
        uses: How often the block uses each leaf, in the order of the node's inputs.
        outputs: The tensors that the node returns.
        places: Where they are among the leaves of what the block returns.
    """

    asking: Asking
    again: Again | None
    uses: dict[Hashable, int]
    outputs: list[Tensor]
    places: list[int]


def stand_for(run: BlockRun, outside: State, again: Again | None, asking: Asking) -> State:
    """Return what a block returned, with one node as its graph.

    Args:
        run: The block's first run.
        outside: What entered the block, outside the leaves that it ran on.
        again: Runs the block once more.
        asking: Refuses gradients while the step runs.
    """
    entering, leaving = run.entering.leaves, run.leaving.leaves
    before = {id(leaf): outside.leaves[at] for at, leaf in enumerate(entering)}
    leaves = [before.get(id(leaf), leaf) for leaf in leaving]
    places: dict[int, int] = {}  # each tensor once
    for place, leaf in enumerate(leaving):
        if wants_gradient(leaf) and leaf.grad_fn is not None:
            places.setdefault(id(leaf), place)
        elif isinstance(leaf, Tensor) and id(leaf) not in before and not leaf.requires_grad:
            leaves[place] = leaf.detach()
    if places:
        outside_graph = [leaving[at].detach() for at in places.values()]
        standing = Standing(asking, again, run.counts, outside_graph, [*places.values()])
        groups = run.by_leaf.values()
        inputs = [before.get(id(use[0]), use[0]) for uses in groups for use in uses]
        outputs: Any = BlockFunction.apply(standing, *inputs)
        made = dict(zip(places, outputs, strict=True))
        leaves = [made.get(id(leaf), new) for leaf, new in zip(leaving, leaves, strict=True)]
    return run.leaving._replace(leaves=tuple(leaves))


class BlockFunction(torch.autograd.Function):
    """The node that stands for a block. The block has run already."""

    @staticmethod
    def forward(ctx: Any, standing: Standing, *inputs: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        ctx.standing = standing
        ctx.set_materialize_grads(False)
        outputs, standing.outputs = standing.outputs, []
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # noqa: D102
        standing: Standing = ctx.standing
        if standing.again is None or standing.asking.running:
            standing.asking.refuse()
        pairs = [(p, g) for p, g in zip(standing.places, grads, strict=True) if g is not None]
        return None, *send_back(standing.again(), dict(pairs), standing.uses)


def send_back(
    run: BlockRun, given: dict[int, Tensor], counts: dict[Hashable, int]
) -> list[Tensor | None]:
    """Send cotangents through a block's graph; return one gradient for each use of a leaf.

    Args:
        run: The block's run.
        given: The cotangents of what it returned, by the leaf's place.
        counts: How often the block's first run used each leaf.
    """
    groups = run.in_order(counts)
    parts = [watched(uses)[0] for uses in groups]
    outputs = tuple(run.leaving.leaves[place] for place in given)
    leaves = tuple(uses[0][0] for uses in groups)
    run.leaving = run.leaving._replace(leaves=())
    try:
        whole = run_backward(outputs, tuple(given.values()), False, False, leaves)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ChangedTensorError(
            "A tensor that a block uses was changed in place after the block ran, so its gradient "
            f"cannot be computed. ({str(error).splitlines()[0]})"
        ) from error
    gradients: list[Tensor | None] = []
    for count, g, arrived in zip(counts.values(), whole, parts, strict=True):
        each = arrived if g is None else [g, *arrived]
        gradients += [*each, *[None] * (count - len(each))]
    return gradients
