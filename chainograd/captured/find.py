"""Tensors that a step captures: found before the first run, or refused after it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from chainograd.captured.fsdp import sharded_modules, with_shards
from chainograd.captured.search import Search
from chainograd.torch_internals.modules import buffers_of

# Note [Captured tensors]
# 1. A tensor gets a gradient only if it is an input of the chain's autograd function. So the chain
#    searches for the tensors that a step captures before the first run (`find_captured`).
# 2. The search can miss a tensor: in a C extension, in an iterator, behind a computed name. So the
#    graph of every step is searched for leaves that are not inputs.


class Captured(NamedTuple):
    """What a step can reach and the chain must know.

    Attributes:
        tensors: Tensors that require a gradient.
        buffers: Buffers of modules in training.
        sharded: Modules that FSDP2 shards.
        modes: All modules, and whether each is in training.
        devices: Devices of all tensors, whether or not they require a gradient.
        generators: Objects that draw random numbers, without the global streams.
        scripted: Whether TorchScript is among it.
        compiled: Whether torch.compile made any of it, or compiles its calls.
        cuda_graphs: Whether compiled code is replayed as CUDA graphs.
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
    """Return what a step and other objects can reach and the chain must know, each thing once.

    Note [The search] says what is followed. For a network of hundreds of modules it takes a few
    milliseconds.

    Raises:
        ChainError: If the step reaches something that would make the gradients wrong.
    """
    search = Search()
    search.walk([step, *others])
    while search.big or search.follow_names():
        search.enter_big()
    sharded = sharded_modules(search.modules)
    return Captured(
        tensors=with_shards(search.tensors, sharded),
        buffers=buffers_in_training(search.modes),
        sharded=sharded,
        modes=search.modes,
        devices=search.devices,
        generators=search.generators,
        scripted=search.scripted,
        compiled=search.compiled,
        cuda_graphs=search.cuda_graphs,
        counts_passes=search.counts_passes,
    )


def buffers_in_training(modes: Iterable[tuple[Module, bool]]) -> list[Tensor]:
    """Return the buffers of those modules that are in training, which steps may change."""
    return [
        buffer
        for module, training in modes
        if training
        for buffer in buffers_of(module).values()
        if buffer is not None
    ]
