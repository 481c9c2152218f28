"""How a step's blocks are called: which of them are checkpointed, one by one or several at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from models_of_today import Built
from step_facts import ATTENTION, blocks_called_by
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

CallBlock = Callable[..., Any]  # (block, *args) -> what the block returns


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
