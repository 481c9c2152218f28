"""Second and further derivatives of a chain: its backward pass as a node of autograd's graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chainograd.engine.backward import run_backward
from chainograd.engine.hooks import without_hooks
from chainograd.engine.plain_loop import plain_loop
from chainograd.engine.run import Run
from chainograd.state import detached_leaf, full_view, wants_gradient


class ChainVjp(torch.autograd.Function):
    """The backward pass of a chain as a function that can be differentiated once more.

    Its own backward pass builds the whole graph of the chain, so that second and further
    derivatives are exact and cost the memory of the plain loop.
    """

    @staticmethod
    def forward(ctx: Any, run: Run, places: list[int], *tensors: Tensor) -> Any:  # noqa: D102
        run.twice = True
        ctx.run, ctx.places = run, places
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        given = [g.detach() for g in tensors[len(run.inputs.tensors) :]]
        return tuple(run_backward(run, dict(zip(places, given, strict=True)), keep=True))

    @staticmethod
    def backward(ctx: Any, *u: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]  # noqa: D102
        run: Run = ctx.run
        further = torch.is_grad_enabled()  # this derivative is itself to be differentiated
        count = len(run.inputs.tensors)
        given = [
            full_view(g) if further and g.requires_grad else detached_leaf(g)
            for g in ctx.saved_tensors[count:]
        ]
        with torch.enable_grad():
            seen = [full_view(t) for t in ctx.saved_tensors[:count]] if further else None
            with run.surroundings.of_first_runs():
                states, inputs = plain_loop(run, seen)
            pairs = [(states[-1].leaves[p], g) for p, g in zip(ctx.places, given, strict=True)]
            pairs = [(leaf, g) for leaf, g in pairs if wants_gradient(leaf)]
            with without_hooks(inputs):
                second = _second(pairs, inputs, given, u, further)
        if second is None:
            return None, None, *[None] * len(ctx.saved_tensors)
        return None, None, *second


def _second(
    pairs: list[tuple[Tensor, Tensor]],
    inputs: list[Tensor],
    given: list[Tensor],
    u: tuple[Tensor | None, ...],
    further: bool,
) -> tuple[Tensor | None, ...] | None:
    """Return the gradients of a gradient, for the inputs and the given cotangents."""
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
        return None
    return torch.autograd.grad(
        [g for g, _ in roots],
        [*inputs, *given],
        [v for _, v in roots],
        create_graph=further,
        allow_unused=True,
    )
