"""Parameters that FSDP2 shards: their gradients go the way that FSDP sends them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

# Note [Sharded parameters]
# 1. `fully_shard` puts another tensor in a parameter's place while a module runs: the gathered one.
#    It is a leaf of the step's graph that the chain has not as an input. FSDP reads its `.grad` at
#    the end of the module's backward pass, scatters it, and adds it to the sharded parameter's.
# 2. So a step with such leaves goes back by `torch.autograd.backward`, which fills `.grad`, and
#    what FSDP adds up over the steps is the gradient, as it is over the plain loop's.
# 3. That fills `.grad` of all leaves on the way, so each other captured tensor gets a stand-in
#    whose `.grad` is read and taken away again.


_HOMES = ("torch.distributed.fsdp", "torch.distributed._composable.fsdp")  # the second: torch 2.5


def sharded_modules(things: Iterable[object]) -> list[Any]:
    """Return those of some things that FSDP2 shards."""
    # What nobody imported shards nothing.
    homes = [sys.modules[name] for name in _HOMES if name in sys.modules]
    kinds = tuple(home.FSDPModule for home in homes if hasattr(home, "FSDPModule"))
    return [thing for thing in things if isinstance(thing, kinds)]


def is_shard(tensor: Tensor) -> bool:
    """Return whether a tensor is a process's part of a sharded one."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def trainable(module: Any) -> bool:
    """Return whether a sharded module has a parameter that requires a gradient."""
    return any(parameter.requires_grad for parameter in module.parameters())


def shards_are_asked_for(inputs: Sequence[Tensor]) -> bool:
    """Return whether the backward pass that is running fills ``.grad`` of shards among inputs."""
    return any(_runs(get_gradient_edge(tensor).node) for tensor in inputs if is_shard(tensor))


def _runs(function: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(function)
    except RuntimeError:  # torch.autograd.grad, which fills nothing
        return False


def gathered(modules: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors that stand for the modules' parameters while they run."""
    for parameter in _parameters(modules):
        tensor = getattr(parameter, "_unsharded_param", None)
        if tensor is not None:
            yield tensor


def with_shards(found: list[Tensor], modules: Sequence[Any]) -> list[Tensor]:
    """Return tensors found in modules with shards in place of what is gathered from them."""
    passing = {id(tensor) for tensor in gathered(modules)}
    kept = [tensor for tensor in found if id(tensor) not in passing]
    seen = {id(tensor) for tensor in kept}
    shards = (parameter.sharded_param for parameter in _parameters(modules))
    return kept + [t for t in shards if t.requires_grad and id(t) not in seen]


def _parameters(modules: Sequence[Any]) -> Iterator[Any]:
    """Yield FSDP's own objects, one a parameter."""
    for module in modules:
        for group in _groups(module._get_fsdp_state()):
            yield from group.fsdp_params


def _groups(state: Any) -> list[Any]:
    if hasattr(state, "_fsdp_param_groups"):
        return state._fsdp_param_groups
    group = state._fsdp_param_group  # torch up to 2.11 has one
    return [] if group is None else [group]


def gradients_by_accumulation(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    sharded: Sequence[Tensor],
) -> list[Tensor | None]:
    """Do what `torch.autograd.grad` does, and fill ``.grad`` of sharded leaves for FSDP to take.

    Note [Sharded parameters], 2 and 3. The inputs are leaves that nobody else sees.
    """
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    torch.autograd.backward(outputs, cotangents, inputs=[*leaves, *sharded])
    found = [tensor.grad for tensor in inputs]
    for tensor in leaves:
        tensor.grad = None
    return found
