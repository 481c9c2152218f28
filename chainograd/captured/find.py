"""Tensors that a step uses without being handed them: found beforehand, or refused afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from chainograd.captured.fsdp import sharded_modules, with_shards
from chainograd.captured.search import Search

# Note [Captured tensors]
# 1. A gradient reaches a tensor only if the chain's autograd function has it as an input. What a
#    step captures is therefore searched for before the first run (`find_captured`).
# 2. A search can miss something (a tensor in a C extension, in an iterator, behind a computed
#    name). So the graph of every step is searched for leaves that are not inputs.


class Captured(NamedTuple):
    """What a step can reach that the chain must know of.

    Attributes:
        tensors: Those that require a gradient.
        buffers: Those of modules in training.
        sharded: Modules that FSDP2 shards.
        modes: All modules, and whether each is in training.
        devices: Where tensors are, those that require no gradient too.
        generators: Objects that draw random numbers, the global streams aside.
        scripted: Whether any of it is TorchScript.
        compiled: Whether torch.compile made any of it, or compiles its calls.
        cuda_graphs: Whether it is replayed as CUDA graphs.
        counts_passes: The class of a module whose hooks count forward passes per backward pass.
    """

    tensors: list[Tensor]
    buffers: list[Tensor]
    sharded: list[Any]
    modes: list[tuple[Module, bool]]
    devices: set[torch.device]
    generators: list[object]
    scripted: bool
    compiled: bool
    cuda_graphs: bool
    counts_passes: str | None


def find_captured(step: object, others: Iterable[object] = ()) -> Captured:
    """Return what ``step``, and others that it is handed, can reach and the chain must know of.

    Each thing once. Note [The search] says what is followed. Costs some milliseconds for a
    network of hundreds of modules.

    Raises:
        ChainError: If something is found that would make the gradients wrong.
    """
    search = Search()
    search.walk([step, *others])
    while search.big or search.follow_names():
        search.enter_big()
    sharded = sharded_modules(search.modules)
    return Captured(
        tensors=with_shards(search.tensors, sharded),
        buffers=[
            buffer
            for module, training in search.modes
            if training
            for buffer in module._buffers.values()
            if buffer is not None
        ],
        sharded=sharded,
        modes=search.modes,
        devices=search.devices,
        generators=search.generators,
        scripted=search.scripted,
        compiled=search.compiled,
        cuda_graphs=search.cuda_graphs,
        counts_passes=search.counts_passes,
    )
