"""Parameters that FSDP2 shards: their gradients must take the way on which FSDP sends them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from chainograd.torch_internals.autograd import fills_grad
from chainograd.torch_internals.fsdp import (
    gathered_tensor,
    shard,
    sharded_classes,
    sharded_parameters,
)

# Note [Sharded parameters]
# 1. While a module runs, `fully_shard` replaces each of its parameters by a gathered tensor. That
#    tensor is a leaf of the step's graph, and no input of the chain. At the end of the module's
#    backward pass FSDP reads its `.grad`, scatters it, and adds it to the sharded parameter's.
# 2. So a step with such leaves goes back by `torch.autograd.backward`, which fills `.grad`. The sum
#    that FSDP accumulates over the steps is then the gradient, as in the plain loop.
# 3. `backward` fills `.grad` of every leaf it reaches. So each other captured tensor gets a
#    stand-in, whose `.grad` is read and removed again.


def sharded_modules(things: Iterable[object]) -> list[Any]:
    """Return the modules among some things that FSDP2 shards."""
    classes = sharded_classes()
    return [thing for thing in things if isinstance(thing, classes)]


def is_shard(tensor: Tensor) -> bool:
    """Return whether a tensor is a process's part of a sharded one."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def trainable(module: Any) -> bool:
    """Return whether a sharded module has a parameter that requires a gradient."""
    return any(parameter.requires_grad for parameter in module.parameters())


def shards_are_asked_for(inputs: Sequence[Tensor]) -> bool:
    """Return whether the backward pass that runs now fills ``.grad`` of a shard."""
    return any(fills_grad(get_gradient_edge(tensor).node) for tensor in inputs if is_shard(tensor))


def gathered(modules: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the gathered tensors that replace the modules' parameters while the modules run."""
    for parameter in _parameters(modules):
        tensor = gathered_tensor(parameter)
        if tensor is not None:
            yield tensor


def with_shards(found: list[Tensor], modules: Sequence[Any]) -> list[Tensor]:
    """Return tensors that were found in modules, with shards in place of gathered tensors."""
    passing = {id(tensor) for tensor in gathered(modules)}
    kept = [tensor for tensor in found if id(tensor) not in passing]
    seen = {id(tensor) for tensor in kept}
    shards = map(shard, _parameters(modules))
    return kept + [t for t in shards if t.requires_grad and id(t) not in seen]


def _parameters(modules: Sequence[Any]) -> Iterator[Any]:
    """Yield FSDP's own object for each parameter of the modules."""
    for module in modules:
        yield from sharded_parameters(module)


def gradients_by_accumulation(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    sharded: Sequence[Tensor],
) -> list[Tensor | None]:
    """Return what `torch.autograd.grad` returns, and fill ``.grad`` of sharded leaves for FSDP.

    Note [Sharded parameters], 2 and 3. The inputs must be leaves that only the chain holds.
    """
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    torch.autograd.backward(outputs, cotangents, inputs=[*leaves, *sharded])
    found = [tensor.grad for tensor in inputs]
    for tensor in leaves:
        tensor.grad = None
    return found
