"""The nodes of autograd's graph that stand for a chain, and for its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chainograd.captured.fsdp import shards_are_asked_for
from chainograd.engine.backward import run_backward
from chainograd.engine.hooks import (
    call_with_gradients_only,
    hooks_with_gradients_only,
    without_hooks,
)
from chainograd.engine.run import Run
from chainograd.errors import ChainError
from chainograd.state import State, detached_leaf, full_view, wants_gradient
from chainograd.torch_internals.autograd import keeps_graph
from chainograd.torch_internals.transforms import (
    is_batch_of_gradients,
    outside_vmap,
    transforms_active,
)


def attach(run: Run, result: State) -> State:
    """Return what a chain gave as a differentiable outcome of the run's inputs."""
    places = [place for place, wanted in enumerate(run.wanted[-1]) if wanted]
    if not places:
        return result
    leaves = list(result.leaves)
    outputs = ChainFunction.apply(run, places, result, *run.inputs)
    for place, output in zip(places, outputs, strict=True):  # type: ignore[arg-type]
        hooks_with_gradients_only(output)
        leaves[place] = output
    return result._replace(leaves=tuple(leaves))


class ChainFunction(torch.autograd.Function):
    """The node that stands for a whole chain.

    The forward pass has been carried out already; here the result gets its place in the graph.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, run: Run, places: list[int], result: State, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.run, ctx.places = run, places
        ctx.set_materialize_grads(False)
        # Aliases: what the run keeps must not hold the graph that holds the run.
        return tuple(result.leaves[place].detach() for place in places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # noqa: D102
        run: Run = ctx.run
        refuse_backward(run, run.plan.num_steps - 1, grads)
        pairs = [(p, g) for p, g in zip(ctx.places, grads, strict=True) if g is not None]
        places, given = [place for place, _ in pairs], [g for _, g in pairs]
        gradients = _gradients(run, places, given)
        missing = [t for t, g in zip(run.inputs, gradients, strict=True) if g is None]
        call_with_gradients_only(missing)
        return None, None, None, *gradients


def _gradients(run: Run, places: list[int], given: list[Tensor]) -> Sequence[Tensor | None]:
    if torch.is_grad_enabled():
        return ChainVjp.apply(run, places, *run.inputs, *given)  # type: ignore[return-value]
    if run.steps.sharded:
        run.steps.trains_shards = shards_are_asked_for(run.inputs)
    with outside_vmap():
        return run_backward(run, dict(zip(places, given, strict=True)), keep=keeps_graph())


def refuse_backward(run: Run, i: int, grads: Sequence[Tensor | None]) -> None:
    """See that a backward pass may go through step i.

    Raises:
        ChainError: If it is of a kind that does not pass through a chain.
        RuntimeError: If an earlier one has freed what it needs.
    """
    if i >= run.left:
        raise RuntimeError(
            "Trying to backward through a chain a second time, but its nodes have been freed. "
            "Pass `retain_graph=True` to the first backward pass."
        )
    if transforms_active():
        raise ChainError(
            "The backward pass of a chain that was called before a torch.func transform cannot "
            "run inside it. Call the chain inside the transform, or pass "
            "`is_grads_batched=True` to torch.autograd.grad."
        )
    if torch.is_grad_enabled():
        _refuse_create_graph(run, grads)


def _refuse_create_graph(run: Run, grads: Sequence[Tensor | None]) -> None:
    if any(g is not None and is_batch_of_gradients(g) for g in grads):
        raise ChainError(
            "`is_grads_batched=True` together with `create_graph=True` does not pass "
            "through a chain. Take the gradients one by one, or use torch.func.vmap of "
            "torch.func.vjp."
        )
    if run.steps.trains_shards:
        raise ChainError(
            "`create_graph=True` does not pass through parameters that FSDP2 shards: FSDP "
            "sends their gradients on by itself, once. Freeze them, or do not shard them."
        )
    if run.transform is not None:
        raise ChainError(
            "`create_graph=True` would leave `grad_transform` out of the second derivative. "
            "Leave one of the two out."
        )


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
        given = [g.detach() for g in tensors[len(run.inputs) :]]
        return tuple(run_backward(run, dict(zip(places, given, strict=True)), keep=True))

    @staticmethod
    def backward(ctx: Any, *u: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]  # noqa: D102
        run: Run = ctx.run
        further = torch.is_grad_enabled()  # this derivative is itself to be differentiated
        count = len(run.inputs)
        given = [
            full_view(g) if further and g.requires_grad else detached_leaf(g)
            for g in ctx.saved_tensors[count:]
        ]
        with torch.enable_grad():
            seen = [full_view(t) for t in ctx.saved_tensors[:count]] if further else None
            with run.like_first():
                states, inputs = run.plain_loop(seen)
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
