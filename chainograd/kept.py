"""Tensors that a step computes and keeps: a later step that uses one is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from chainograd.captured import AccumulateGrad
from chainograd.errors import ChainError
from chainograd.saved import saved_are_hooked
from chainograd.states import State

# Note [Kept tensors]
# 1. In the plain loop a tensor that step 0 computed and kept (merged adapter weights, keys and
#    values of a prompt) takes the gradients of all steps to what it was computed from. In a chain
#    it was made without a graph, and is there already when a step runs again: no gradient.
# 2. So the first two steps that a gradient passes run with their graphs, which are let go at once,
#    and the nodes of the first are marked. One that the second leads to belongs to a kept tensor.
#    What is kept and never used again, as by a hook that collects features, leads nowhere.
# 3. Once for tensors of given shapes: later calls run the same code. And before any other run of a
#    step, which would leave a kept tensor behind that has no graph.

_MARK = "chainograd"


def may_look(sharded: Sequence[Any]) -> bool:
    """Return whether a graph that is let go at once goes unnoticed.

    FSDP2 would wait for its gradients, and hooks on what graphs save, those of
    `torch.utils.checkpoint` around a chain, would count it in.
    """
    return not sharded and not saved_are_hooked()


class Look:
    """Looks at the graphs of a run's first steps.

    Attributes:
        mode: What the run is like: others like it need not be looked at.
        seen: Steps whose graphs were looked at, all slices of them.
    """

    def __init__(self, mode: Any) -> None:
        self.mode = mode
        self.seen: set[int] = set()

    @property
    def done(self) -> bool:
        """Whether two steps were seen."""
        return len(self.seen) == 2

    def at(self, index: int, leaving: State) -> None:
        """Look at the graph of a step.

        Raises:
            ChainError: If it leads to that of a step before.
        """
        if self.done and index not in self.seen:
            return
        nodes = list(_nodes(leaving))
        for node in nodes:
            run, before = node.metadata.get(_MARK, (None, None))
            if run is self:
                raise ChainError(
                    f"Step {index} uses a tensor that step {before} computed (by "
                    f"{node.name().removesuffix('Backward0')}) and kept. What it was computed from "
                    "would get no gradient through it: when steps run again, they find it there. "
                    "Compute it before the chain and pass it as an argument, carry it in the "
                    "state, or compute it in every step; if its gradient is not wanted, keep "
                    "`tensor.detach()`."
                )
        for node in nodes:
            node.metadata[_MARK] = self, index
        if nodes:
            self.seen.add(index)


def _nodes(state: State) -> Iterator[Any]:
    """Yield the nodes of the graph of a state, but for those of its leaves."""
    stack = [leaf.grad_fn for leaf in state.leaves if isinstance(leaf, Tensor)]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is not None and type(node) is not AccumulateGrad and node not in seen:
            seen.add(node)
            yield node
            stack.extend(parent for parent, _ in node.next_functions)
