"""The node of autograd's graph that stands for a chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chainograd.captured.fsdp import shards_are_asked_for
from chainograd.engine.backward import run_backward
from chainograd.engine.hooks import call_with_gradients_only, hooks_with_gradients_only
from chainograd.engine.run import Run
from chainograd.engine.second_order import ChainVjp
from chainograd.errors import ChainError
from chainograd.state import State
from chainograd.torch_internals.autograd import keeps_graph
from chainograd.torch_internals.transforms import (
    is_batch_of_gradients,
    outside_vmap,
    transforms_active,
)


def attach(run: Run, result: State) -> State:
    """Return the result of a chain as a differentiable function of the run's inputs."""
    places = [place for place, wanted in enumerate(run.first_pass.wanted[-1]) if wanted]
    if not places:
        return result
    leaves = list(result.leaves)
    outputs = ChainFunction.apply(run, places, result, *run.inputs.tensors)
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
        missing = [t for t, g in zip(run.inputs.tensors, gradients, strict=True) if g is None]
        call_with_gradients_only(missing)
        return None, None, None, *gradients


def _gradients(run: Run, places: list[int], given: list[Tensor]) -> Sequence[Tensor | None]:
    if torch.is_grad_enabled():
        return ChainVjp.apply(run, places, *run.inputs.tensors, *given)  # type: ignore[return-value]
    if run.shared.sharded:
        run.shared.trains_shards = shards_are_asked_for(run.inputs.tensors)
    with outside_vmap():
        return run_backward(run, dict(zip(places, given, strict=True)), keep=keeps_graph())


def refuse_backward(run: Run, i: int, grads: Sequence[Tensor | None]) -> None:
    """Check that a backward pass may go through step i.

    Raises:
        ChainError: If it is of a kind that does not pass through a chain.
        RuntimeError: If an earlier one has freed what it needs.
    """
    if i >= run.memory.left:
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
    if run.shared.trains_shards:
        raise ChainError(
            "`create_graph=True` does not pass through parameters that FSDP2 shards: FSDP "
            "sends their gradients on by itself, once. Freeze them, or do not shard them."
        )
    if run.options.transform is not None:
        raise ChainError(
            "`create_graph=True` would leave `grad_transform` out of the second derivative. "
            "Leave one of the two out."
        )
