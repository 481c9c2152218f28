"""What others do within a sampler's steps: which blocks are checkpointed, and what is kept of them.

A way says how a step calls the model's blocks, and whether a checkpoint lies around the step too.

plain              every graph is kept
step               `torch.utils.checkpoint` around each step
block              around each block: diffusers' ``enable_gradient_checkpointing``
nested             around each step, and in it around each block
every 2nd          around every second block
2 of 4             around the first two of each four blocks, each by itself
attention kept     around each block, and attention's outputs are kept: torch's selective policy
segments 2/4       one checkpoint around two blocks, the next two without: SimpleTuner's segments
block, on host     around each block, and what enters it waits on the host: `save_on_cpu`
remat              torch-remat around each block, the attention of which is a region that is kept
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
from models_of_today import Built
from step_facts import ATTENTION, blocks_called_by
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

CallBlock = Callable[..., Any]  # (block, *args) -> what the block returns
Run = Callable[[Tensor, int, Callable[[], None]], None]
"""Samples M steps from a state, calling back after each, and runs backward."""


@dataclass(frozen=True)
class BlockCall:
    """A call of a block in a step.

    Attributes:
        block: The block.
        sources: For each argument, where it comes from if the call before it is known: that call's
            argument or output, by number. None if something was computed between the two calls.
    """

    block: Callable[..., Any]
    sources: tuple[tuple[str, int], ...] | None


@dataclass(frozen=True)
class Way:
    """A way of going back through a sampler.

    Attributes:
        name: Its name in tables.
        calls: Returns, at the beginning of each step, how the step's blocks are called; None calls
            them as they are. It is given the step's calls of blocks.
        each_step: Whether a checkpoint lies around each step.
        fits: Whether a model with these calls of blocks can be run so.
        around: A context around the whole run.
    """

    name: str
    calls: Callable[[list[BlockCall]], CallBlock] | None = None
    each_step: bool = False
    fits: Callable[[list[BlockCall]], bool] = lambda calls: True
    around: Callable[[Built, Host], AbstractContextManager[Any]] = lambda built, host: nullcontext()


class Host:
    """Bytes that lie on the host.

    Attributes:
        live_bytes: Those of now.
        peak_bytes: The most at once.
    """

    def __init__(self) -> None:
        self.live_bytes = self.peak_bytes = 0

    def add(self, count: int) -> None:
        """Count bytes that come, or go if negative."""
        self.live_bytes += count
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def prepared(built: Built, way: Way, calls: list[BlockCall], host: Host) -> Run:
    """Return a run of a way. Its loss is the mean square."""

    def step(x: Tensor, i: int, *conditions: Tensor) -> Tensor:
        with blocks_called_by(built.net, way.calls(calls) if way.calls else None):
            return built.step(x, i, *conditions)

    run_step = partial(again, step) if way.each_step else step

    def run(x: Tensor, M: int, after_step: Callable[[], None]) -> None:
        with way.around(built, host):
            for i in range(M):
                x = run_step(x, i, *built.conditions)
                after_step()
            x.square().mean().backward()

    return run


def block_calls(built: Built) -> list[BlockCall]:
    """Return the calls of blocks in a step, which are the same in all."""
    calls: list[BlockCall] = []
    before: list[Any] = []  # of the last call: arguments, outputs

    def watch(block: Any, *args: Any) -> Any:
        calls.append(BlockCall(block, sources(args, *before) if before else None))
        out = block(*args)
        before[:] = args, outputs(out)
        return out

    with blocks_called_by(built.net, watch):
        built.step(built.x, 0, *built.conditions)
    return calls


def sources(args: Any, args_before: Any, outputs_before: Any) -> Any:
    """Return where a call's arguments come from, or None if one is neither of the call before."""
    found = []
    for arg in args:
        out = [("output", j) for j, t in enumerate(outputs_before) if t is arg and t is not None]
        same = [("argument", j) for j, t in enumerate(args_before) if t is arg]
        if not out + same:
            return None
        found.append((out + same)[0])
    return tuple(found)


def outputs(out: Any) -> tuple[Any, ...]:
    """Return what a block returned, as a tuple."""
    return out if isinstance(out, tuple) else (out,)


def again(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return a function's result; torch runs it again on the way back."""
    return checkpoint(function, *args, use_reentrant=False, **options)


def some(chosen: Callable[[int], bool]) -> Callable[[list[BlockCall]], CallBlock]:
    """Return the way that checkpoints the blocks whose number is chosen."""

    def calls(_: list[BlockCall]) -> CallBlock:
        number = count()
        return lambda block, *args: (
            again(block, *args) if chosen(next(number)) else block(*args)
        )  # fmt: skip

    return calls


def attention_kept(_: list[BlockCall]) -> CallBlock:
    """Checkpoint each block and keep the outputs of its attention."""
    kept = [op.default for op in ATTENTION]
    return partial(again, context_fn=partial(create_selective_checkpoint_contexts, kept))


def segments(known: list[BlockCall], width: int = 2, stride: int = 4) -> CallBlock:
    """Run ``width`` blocks in one checkpoint, then leave the others of each ``stride`` as they are.

    The model calls blocks one by one. The first call of a segment runs all of it, and the others
    return what it returned, for the model does nothing between them but hand outputs on.
    """
    number, waiting = count(), []

    def call(block: Any, *args: Any) -> Any:
        k = next(number)
        if k % stride >= width:
            return block(*args)
        if k % stride == 0:
            waiting[:] = [again(partial(in_a_row, known[k : k + width]), *args)]
        return waiting[0] if k % stride < width - 1 and k < len(known) - 1 else waiting.pop()

    return call


def in_a_row(calls: list[BlockCall], *args: Any) -> Any:
    """Run blocks one after another on the first one's arguments."""
    out = calls[0].block(*args)
    for call in calls[1:]:
        known = {"argument": args, "output": outputs(out)}
        args = tuple(known[kind][j] for kind, j in call.sources or ())
        out = call.block(*args)
    return out


def in_segments(calls: list[BlockCall], width: int = 2, stride: int = 4) -> bool:
    """Return whether nothing lies between the blocks of each segment; a UNet has skips there."""
    return all(c.sources is not None for k, c in enumerate(calls) if 0 < k % stride < width)


@contextmanager
def on_host(built: Built, host: Host) -> Iterator[None]:
    """Let saved tensors, weights excepted, lie on the host: `save_on_cpu`, counted.

    Fake tensors have no bytes to be moved. So the size of what is saved is counted on the host,
    and a new tensor is made when it is asked for.
    """
    weights = {id(p) for p in built.net.parameters()}

    def pack(tensor: Tensor) -> Any:
        return tensor if id(tensor) in weights else _Away(tensor, host)

    def unpack(packed: Any) -> Tensor:
        return packed.back() if isinstance(packed, _Away) else packed

    with saved_tensors_hooks(pack, unpack):
        yield


class _Away:
    """The place of a tensor on the host."""

    def __init__(self, tensor: Tensor, host: Host) -> None:
        self.like = tensor.shape, tensor.stride(), tensor.dtype
        size = tensor.numel() * tensor.element_size()
        host.add(size)
        weakref.finalize(self, host.add, -size)

    def back(self) -> Tensor:
        shape, stride, dtype = self.like
        return torch.empty_strided(shape, stride, dtype=dtype)


def remat(_: list[BlockCall]) -> CallBlock:
    """Checkpoint each block by torch-remat, which takes no None among what a block returns."""
    import torch_remat  # pyright: ignore[reportMissingImports]

    def call(block: Any, *args: Any) -> Any:
        shape: list[Any] = []

        def tensors(*args: Any) -> tuple[Tensor, ...]:
            shape[:] = [block(*args)]
            found = tuple(t for t in outputs(shape[0]) if t is not None)
            shape[:] = [isinstance(shape[0], tuple), [t is None for t in outputs(shape[0])]]
            return found

        found = iter(torch_remat.checkpoint()(tensors)(*args))
        several, missing = shape
        out = tuple(None if none else next(found) for none in missing)
        return out if several else out[0]

    return call


@contextmanager
def attention_is_a_region(built: Built, host: Host) -> Iterator[None]:
    """Keep the graph of attention in torch-remat's checkpoints, and its output for the rest."""
    import torch_remat  # pyright: ignore[reportMissingImports]

    plain = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, *args: Any, **options: Any) -> Tensor:
        name = f"attention of {query.shape[-2]} to {key.shape[-2]}"  # one of a kind in a block
        out = torch_remat.region(plain, name, recompute=False)(query, key, *args, **options)
        torch_remat.recompute_needs_tensor(out)
        return out

    with patch.object(F, "scaled_dot_product_attention", attention):
        yield


def _remat_is_there(_: list[BlockCall]) -> bool:
    return find_spec("torch_remat") is not None


every, every_2nd = some(lambda k: True), some(lambda k: k % 2 == 0)
two_of_4 = some(lambda k: k % 4 < 2)
WAYS = {
    way.name: way
    for way in (
        Way("plain"),
        Way("step", each_step=True),
        Way("block", every),
        Way("nested", every, each_step=True),
        Way("every 2nd", every_2nd),
        Way("2 of 4", two_of_4),
        Way("attention kept", attention_kept),
        Way("segments 2/4", segments, fits=in_segments),
        Way("step, every 2nd", every_2nd, each_step=True),
        Way("step, 2 of 4", two_of_4, each_step=True),
        Way("step, attention kept", attention_kept, each_step=True),
        Way("step, segments 2/4", segments, each_step=True, fits=in_segments),
        Way("block, on host", every, around=on_host),
        Way("remat", remat, fits=_remat_is_there, around=attention_is_a_region),
    )
}
