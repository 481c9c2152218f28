"""Gradients of a tensor that a step uses several times, use by use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from chainograd.engine.accumulate import Use, Uses
from chainograd.tensors.devices import current_stream

# Note [Use by use]
# The plain loop adds up the gradient of a state that a loss sees and that the next step uses twice
# as (loss + one use) + the other. The loss's part arrives in autograd's buffer, where nobody can
# look at it. So the chain passes the step's parts to autograd one by one, in the order in which
# they arrived, and autograd adds them up as it does in the plain loop: loss + (one + other) would
# have other bits. A tensor that a step uses once needs no such care.


class StateUses(NamedTuple):
    """How a step uses the state that enters it.

    Attributes:
        groups: Places of leaves that it uses; those that are one tensor outside together.
        counts: How often it uses each group.
    """

    groups: list[list[int]]
    counts: list[int]

    @property
    def apart(self) -> list[list[int]]:
        """The groups whose gradients are to be told apart, use by use; no places for others."""
        pairs = zip(self.groups, self.counts, strict=True)
        return [places if count > 1 else [] for places, count in pairs]

    def parts(self, whole: dict[int, Tensor], apart: list[list[Tensor]]) -> list[list[Tensor]]:
        """Return each group's gradients, no more than it has uses.

        Args:
            whole: Gradients that were not told apart, by the leaf's place.
            apart: Gradients that were, in the order in which they arrived; may be empty.
        """
        each = apart or [[] for _ in self.groups]
        return [
            _at_most(count, [*(whole[p] for p in places if p in whole), *more])
            for places, count, more in zip(self.groups, self.counts, each, strict=True)
        ]


def _at_most(count: int, parts: list[Tensor]) -> list[Tensor]:
    """Return so many gradients; a graph that is made again may use a leaf more often."""
    if len(parts) <= count:
        return parts
    return [*parts[: count - 1], sum(parts[count:], parts[count - 1])]


Apart = Sequence[Sequence[int]]  # groups of places


def taken_apart(uses: Uses, groups: Apart) -> list[list[Tensor]]:
    """Let the gradients of leaves that are used several times arrive in the lists returned.

    Args:
        uses: Where a graph uses leaves, by their places.
        groups: Which are asked for. A leaf's gradient then lacks what arrived here.
    """
    return [watched([use for p in places for use in uses.get(p, ())])[0] for places in groups]


def watched(uses: Sequence[Use]) -> tuple[list[Tensor], list[Any]]:
    """Let the gradients of several uses arrive in the list returned, in place of their sum.

    What is returned with it ends that, for a graph that gradients are to pass once more.
    """
    arrived: list[Tensor] = []
    hooked = [use for use in uses if use[1] is not None] if len(uses) > 1 else []
    return arrived, [
        operation.register_hook(_taking(arrived, place, leaf)) for leaf, operation, place in hooked
    ]


def _taking(arrived: list[Tensor], place: int, leaf: Tensor) -> Callable[..., Any]:
    stream = current_stream(leaf.device)

    def take(gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...] | None:
        g = gradients[place]
        # One on another stream might not be ready. The engine waits for it.
        if g is None or current_stream(g.device) != stream:
            return None
        arrived.append(g)
        return (*gradients[:place], None, *gradients[place + 1 :])

    return take


def uses_until(outputs: Iterable[Tensor], inputs: Sequence[Tensor]) -> list[list[Use]]:
    """Return where the graph of outputs uses inputs that have a graph of their own."""
    ends = {tensor.grad_fn: at for at, tensor in enumerate(inputs)}
    uses: list[list[Use]] = [[] for _ in inputs]
    stack = [output.grad_fn for output in outputs if output.grad_fn not in ends]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node is None:
            continue
        for place, (parent, _) in enumerate(node.next_functions):
            if parent in ends:
                uses[ends[parent]].append((inputs[ends[parent]], node, place))
            elif parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return uses
