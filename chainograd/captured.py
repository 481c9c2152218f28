"""Tensors that a step uses without being handed them: found beforehand, or refused afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from chainograd.search import Search
from chainograd.sharded import sharded_modules, with_shards
from chainograd.sums import Use

# Note [Captured tensors]
# 1. A gradient reaches a tensor only if the chain's autograd function has it as an input. What a
#    step captures is therefore searched for before the first run (`find_captured`).
# 2. A search can miss something (a tensor in a C extension, in an iterator, behind a computed
#    name). So the graph of every recorded step is searched for leaves that are not inputs
#    (`leaves_used`), and where no step will ever be recorded, the first run is watched
#    (`Witness`).

AccumulateGrad: type = torch._C._functions.AccumulateGrad  # pyright: ignore


class Captured(NamedTuple):
    """What a step can reach that the chain must know of.

    Attributes:
        tensors: Those that require a gradient.
        buffers: Those of modules in training.
        sharded: Modules that FSDP2 shards.
        modes: All modules, and whether each is in training.
        devices: Where tensors are, those that require no gradient too.
        compiled: Whether torch.compile made any of it, or compiles its calls.
        counts_passes: The class of a module whose hooks count forward passes per backward pass.
    """

    tensors: list[Tensor]
    buffers: list[Tensor]
    sharded: list[Any]
    modes: list[tuple[Module, bool]]
    devices: set[torch.device]
    compiled: bool
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
        compiled=search.compiled,
        counts_passes=search.counts_passes,
    )


def leaves_used(outputs: Iterable[Any]) -> list[Use]:
    """Return every use of a leaf in the graph of the tensors among ``outputs``.

    One that is itself a leaf requiring a gradient is among them.
    """
    uses: list[Use] = []
    stack: list[Any] = []
    for output in outputs:
        if isinstance(output, Tensor) and output.requires_grad:
            if output.grad_fn is None:
                uses.append((output, None, 0))
            else:
                stack.append(output.grad_fn)
    seen = set(stack)
    while stack:
        node = stack.pop()
        for place, (parent, _) in enumerate(node.next_functions):
            if type(parent) is AccumulateGrad:
                uses.append((parent.variable, node, place))
            elif parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return uses


class Witness(TorchFunctionMode):
    """Calls ``report`` with every tensor requiring a gradient that an operation is given."""

    def __init__(self, report: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.report = report
        self.own: dict[int, Tensor] = {}  # made to require one by the step itself

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        for value in given:
            if value.requires_grad and id(value) not in self.own:
                self.report(value)
        result = func(*args, **(kwargs or {}))
        for value in (*given, *pytree.tree_leaves(result)):
            if isinstance(value, Tensor) and value.requires_grad:
                self.own[id(value)] = value
        return result
