"""The nodes of autograd's graph that stand for a chain, and for its backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import (
    _get_current_graph_task_keep_graph,  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
)

from chainograd.engine import Tape
from chainograd.errors import ChainError
from chainograd.steps import Cotangents, State, stand_in, wants_gradient

Place = tuple[int, int]  # a leaf of a state: the state's index, the leaf's place in it


def attach(tape: Tape, states: dict[int, State]) -> dict[int, State]:
    """Return states that a chain gave, as differentiable outcomes of the tape's inputs."""
    places = [
        (i, place)
        for i, state in states.items()
        for place, leaf in enumerate(state.leaves)
        if tape.differentiable(i, place, leaf)
    ]
    if not places:
        return states
    leaves = {i: list(state.leaves) for i, state in states.items()}
    outputs = ChainFunction.apply(tape, places, states, *tape.inputs)
    for (i, place), output in zip(places, outputs, strict=True):  # type: ignore[arg-type]
        leaves[i][place] = output
    return {i: state._replace(leaves=tuple(leaves[i])) for i, state in states.items()}


class ChainFunction(torch.autograd.Function):
    """The node that stands for a whole chain.

    The forward pass has been carried out already; here the states it gave get their place in the
    graph.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, tape: Tape, places: list[Place], states: dict[int, State], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.tape, ctx.places = tape, places
        ctx.set_materialize_grads(False)
        # Aliases: what the tape keeps must not hold the graph that holds the tape.
        return tuple(states[i].leaves[place].detach() for i, place in places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # noqa: D102
        tape: Tape = ctx.tape
        if tape.spent:
            raise RuntimeError(
                "Trying to backward through a chain a second time, but its nodes have been freed. "
                "Pass `retain_graph=True` to the first backward pass."
            )
        pairs = [(p, g) for p, g in zip(ctx.places, grads, strict=True) if g is not None]
        places, given = [place for place, _ in pairs], [g for _, g in pairs]
        if torch.is_grad_enabled():
            return None, None, None, *ChainVjp.apply(tape, places, *tape.inputs, *given)
        keep = _get_current_graph_task_keep_graph()  # retain_graph
        return None, None, None, *tape.backward(by_state(places, given), keep=keep)


class ChainVjp(torch.autograd.Function):
    """The backward pass of a chain as a function that can be differentiated once more.

    Its own backward pass builds the whole graph of the chain: second derivatives are exact, and
    cost the memory of the plain loop.
    """

    @staticmethod
    def forward(ctx: Any, tape: Tape, places: list[Place], *tensors: Tensor) -> Any:  # noqa: D102
        if tape.transform is not None:
            raise ChainError(
                "`create_graph=True` would leave `grad_transform` out of the second derivative. "
                "Leave one of the two out."
            )
        tape.twice = True
        ctx.tape, ctx.places = tape, places
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        given = [g.detach() for g in tensors[len(tape.inputs) :]]
        return tuple(tape.backward(by_state(places, given), keep=True))

    @staticmethod
    def backward(ctx: Any, *u: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]  # noqa: D102
        if torch.is_grad_enabled():
            # Its result would be a constant to autograd, and the next derivative silently wrong.
            raise ChainError(
                "A chain can be differentiated twice, but `create_graph=True` asks its second "
                "derivative to be differentiable. Leave it out, or run the plain loop over the "
                "steps for third derivatives."
            )
        tape: Tape = ctx.tape
        given = [stand_in(g) for g in ctx.saved_tensors[len(tape.inputs) :]]
        with torch.enable_grad(), tape.surroundings():
            states = tape.plain_loop()
            inputs = [*filter(wants_gradient, states[0].leaves), *tape.steps.shared]
            pairs = [
                (states[i].leaves[place], g)
                for (i, place), g in zip(ctx.places, given, strict=True)
            ]
            pairs = [(leaf, g) for leaf, g in pairs if wants_gradient(leaf)]
            first = torch.autograd.grad(
                [leaf for leaf, _ in pairs],
                inputs,
                [g for _, g in pairs],
                create_graph=True,
                allow_unused=True,
            )
            roots = [(g, v) for g, v in zip(first, u, strict=True)
                     if g is not None and v is not None and g.requires_grad]  # fmt: skip
            if not roots:
                return None, None, *[None] * len(ctx.saved_tensors)
            second = torch.autograd.grad(
                [g for g, _ in roots],
                [*inputs, *given],
                [v for _, v in roots],
                allow_unused=True,
            )
        return None, None, *second


def by_state(places: list[Place], given: list[Tensor]) -> dict[int, Cotangents]:
    """Return cotangents by the state's index and the leaf's place in it."""
    result: dict[int, Cotangents] = {}
    for (i, place), g in zip(places, given, strict=True):
        result.setdefault(i, {})[place] = g
    return result
