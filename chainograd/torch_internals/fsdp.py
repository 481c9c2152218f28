"""FSDP2: the modules that it shards, their sharded parameters and the gathered ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor

_HOMES = ("torch.distributed.fsdp", "torch.distributed._composable.fsdp")  # the second: torch 2.5


def sharded_classes() -> tuple[type, ...]:
    """Return the base classes of modules that `fully_shard` was called on; empty without FSDP2.

    Private: `torch.distributed._composable.fsdp.FSDPModule`, in torch 2.5. Public:
    `torch.distributed.fsdp.FSDPModule`, since torch 2.6.
    """
    # A module that nobody imported shards nothing.
    homes = [sys.modules[name] for name in _HOMES if name in sys.modules]
    return tuple(home.FSDPModule for home in homes if hasattr(home, "FSDPModule"))


def sharded_parameters(module: Any) -> Iterator[Any]:
    """Yield FSDP2's own object for each parameter of a module that it shards.

    Private: `FSDPModule._get_fsdp_state`, `_fsdp_param_groups` of the state (`_fsdp_param_group` in
    torch up to 2.11), `fsdp_params` of a group. Public: none.
    """
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        groups = state._fsdp_param_groups
    else:
        groups = [] if state._fsdp_param_group is None else [state._fsdp_param_group]
    for group in groups:
        yield from group.fsdp_params


def shard(parameter: Any) -> Tensor:
    """Return a process's part of a parameter, from FSDP2's object for it.

    Private: `FSDPParam.sharded_param`. Public: the parameter of the module while it is sharded.
    """
    return parameter.sharded_param


def gathered_tensor(parameter: Any) -> Tensor | None:
    """Return the whole tensor that stands for a parameter while its module runs, if there is one.

    Private: `FSDPParam._unsharded_param`. Public: the parameter of the module while it runs.
    """
    return getattr(parameter, "_unsharded_param", None)
