"""What one step of a model costs: work, the bytes that its graph keeps, and where they lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from working import working

from chainograd.tensors.flops import FORMULAS
from chainograd.torch_internals.tensors import storage_id

aten = torch.ops.aten
ATTENTION = (
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
)
Bytes = dict[int, int]  # storages and their sizes


@dataclass(frozen=True)
class Facts:
    """The costs of a step whose state and conditions want gradients as they do in a sampler.

    Attributes:
        forward_flops: F, the work of the forward pass.
        backward_flops: B, the work of the backward pass.
        attention_share: Which part of F is attention's.
        graph_bytes: g, what the graph keeps beside weights, state and conditions.
        attention_bytes: Attention's outputs and log-sum-exps.
        block_input_bytes: What enters the blocks.
        largest_block_bytes: The largest graph of one block.
        outside_bytes: What the graph keeps for operations outside the blocks.
        blocks: How many calls of blocks there are.
    """

    forward_flops: int
    backward_flops: int
    attention_share: float
    graph_bytes: int
    attention_bytes: int
    block_input_bytes: int
    largest_block_bytes: int
    outside_bytes: int
    blocks: int


def facts(net: Any, step: Callable[[], Tensor], given: Iterable[Tensor]) -> Facts:
    """Return the facts of a step.

    Args:
        net: The model of diffusers that the step calls.
        step: The step, with its arguments.
        given: Tensors that were there before it; the network's weights are taken to be.
    """
    before = _sizes([*net.parameters(), *net.buffers(), *given])
    with working(FORMULAS) as work:
        with _watching(net, before) as seen, _Attention() as attention:
            y = step()
        F, shares = work.flops, sum(work.by_operation[op] for op in ATTENTION)
        y.backward(torch.ones_like(y))
        B = work.flops - F
    everything: Bytes = {}
    for saved in seen.saved.values():
        everything |= saved
    graphs = [sum(saved.values()) for k, saved in seen.saved.items() if k is not None]
    return Facts(
        F, B, shares / F, sum(everything.values()), attention.bytes,
        sum(seen.inputs.values()), max(graphs, default=0),
        sum(seen.saved[None].values()), seen.blocks,
    )  # fmt: skip


class _Seen:
    """What was saved in which block, and what entered the blocks."""

    def __init__(self) -> None:
        self.blocks = 0
        self.now: int | None = None
        self.saved: dict[int | None, Bytes] = defaultdict(dict)
        self.inputs: Bytes = {}


@contextmanager
def _watching(net: Any, before: Bytes) -> Iterator[_Seen]:
    seen = _Seen()

    def pack(tensor: Tensor) -> Tensor:
        seen.saved[seen.now] |= {k: n for k, n in _sizes([tensor]).items() if k not in before}
        return tensor

    def block(call: Callable[..., Any], *args: Any) -> Any:
        seen.inputs |= {k: n for k, n in _sizes(tree_leaves(args)).items() if k not in before}
        seen.now, seen.blocks = seen.blocks, seen.blocks + 1
        try:
            return call(*args)
        finally:
            seen.now = None

    with ExitStack() as stack:
        stack.enter_context(blocks_called_by(net, block))
        stack.enter_context(saved_tensors_hooks(pack, lambda tensor: tensor))
        yield seen


@contextmanager
def blocks_called_by(net: Any, call: Callable[..., Any] | None) -> Iterator[None]:
    """Let a model of diffusers call each block through ``call(block, *args)``.

    None leaves the model as it is. In diffusers this is the way to another checkpointing function.
    """
    if call is None:
        yield
        return
    net.enable_gradient_checkpointing(gradient_checkpointing_func=call)
    try:
        yield
    finally:
        net.disable_gradient_checkpointing()


class _Attention(TorchDispatchMode):
    """Sums the bytes of attention's results."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in ATTENTION:
            self.bytes += sum(_sizes(tree_leaves(out)).values())
        return out


def _sizes(things: Iterable[Any]) -> Bytes:
    found = [thing.untyped_storage() for thing in things if isinstance(thing, Tensor)]
    return {storage_id(storage): storage.nbytes() for storage in found}
