"""Whether samples of a batch are independent, as `micro_batch` takes them to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainograd.engine.abstract_step import AbstractStep, GraphOptions, Recording
from chainograd.engine.graph import Mark
from chainograd.engine.microbatch import SlicedStep
from chainograd.engine.run import Run
from chainograd.engine.shared import SharedTensors
from chainograd.engine.slices import has_batch
from chainograd.engine.step import Step
from chainograd.errors import ChainError
from chainograd.state import State, differentiable
from chainograd.torch_internals.modes import is_fake


def compare_slices(run: Run, step: SlicedStep) -> None:
    """Check that every step returns for slices of a batch what it returns for the batch.

    Raises:
        ChainError: If a step does not.
    """
    if step.batch <= step.size or any(is_fake(t) for t in run.x_T.tensors):
        return
    rng, room = run.surroundings.rng, _room(run)
    before = rng.state()
    off, i = difference(step, run.x_T, room)
    if rng.state(before) is not before:
        # Noise is drawn slice by slice, so only the use of other samples can be seen.
        off, i = influence(step, run.x_T, room, lambda: rng.set(before))
    if off:
        raise ChainError(
            f"`micro_batch={step.size}` would compute a different chain. In step {i}, two slices "
            f"run separately differ from the same two run together (relative difference {off:.2g})."
            " Either samples see each other (batch norm in training: call `eval()`), or a table "
            "with as many rows as the batch has samples was cut with it (pass it as "
            "`table[None]`), or noise that is a function of the step is the same for all slices "
            "(pass it as an argument of the chain, one entry a sample, so that it is cut)."
        )


def _room(run: Run) -> float:
    """Return the relative difference that rounding explains."""
    dtypes = [t.dtype for t in run.x_T.tensors if differentiable(t)]
    dtypes += [cast.dtype for cast in run.surroundings.context.autocast if cast.enabled]
    return min(10 * max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5, 0.1)


def difference(step: SlicedStep, x_T: State, room: float) -> tuple[float, int]:
    """Return how far a step takes two slices apart from where it takes them together, and which.

    The difference is relative to the state. Rounding aside it is zero, unless samples see each
    other, or an argument was cut that has no batch. The first step that is off by more than
    ``room`` counts.
    """
    pair, x = _Pair(step), _first(x_T, step.batch, 2 * _half(step))
    for i in range(step.num_steps):
        apart = pair.run(pair.apart, i, x)
        x = pair.run(pair.together, i, x)
        off = _apart(apart, x)
        if off > room:
            return off, i
    return 0.0, 0


def influence(
    step: SlicedStep, x_T: State, room: float, rewind: Callable[[], None]
) -> tuple[float, int]:
    """Return how far other values of the second slice move the first of two, and in which step.

    The same noise is drawn for both. This cannot see an argument that was cut and has no batch.
    The first step that is off by more than ``room`` counts.
    """
    pair, half = _Pair(step), _half(step)
    x = _first(x_T, step.batch, 2 * half)
    other = x._replace(leaves=tuple(_other(leaf, half) for leaf in x.leaves))
    rewind()
    states = []
    for i in range(step.num_steps):
        x = pair.run(pair.together, i, x)
        states.append(_first(x, 2 * half, half))
    rewind()
    for i in range(step.num_steps):
        other = pair.run(pair.together, i, other)
        off = _apart(_first(other, 2 * half, half), states[i])
        if off > room:
            return off, i
    return 0.0, 0


class _Pair:
    """The steps on the first two slices of a batch, one by one and together."""

    def __init__(self, step: SlicedStep) -> None:
        half, shared = _half(step), step.shared
        arguments = _first(shared.inner_arguments, step.batch, 2 * half)
        own = SharedTensors(arguments, shared.captured, shared.captured, [])
        self.mark = object()
        # That steps take gradients of their own is to be known before noise is drawn for good.
        options = GraphOptions(saves=step.options.saves)
        whole = Step.of(step.function, step.num_steps, own, options)
        self.apart = SlicedStep(whole, 2 * half, half)
        self.together = SlicedStep(whole, 2 * half, 2 * half)
        self.told = step.options

    def run(self, step: AbstractStep, i: int, x: State) -> State:
        wanted = [differentiable(leaf) for leaf in x.leaves]
        mark = Mark(self.mark, i)
        result = step.run(i, x, wanted, mark, record=Recording.DISCARD, rewind=lambda: None)
        self.told.saves = step.options.saves
        return result.leaving


def _half(step: SlicedStep) -> int:
    return min(step.size, step.batch // 2)


def _other(leaf: Any, half: int) -> Any:
    """Return a leaf with other values for its second slice."""
    if not (has_batch(leaf, 2 * half) and differentiable(leaf)):
        return leaf
    return torch.cat([leaf[:half], 1 - 2 * leaf[half:]])


def _apart(a: State, b: State) -> float:
    """Return how far two states are apart, relative to the second."""
    off = size = 0.0
    for one, two in zip(a.leaves, b.leaves, strict=True):
        if differentiable(one):
            if one.shape != two.shape:  # what is the same for all samples was joined as a batch
                return 1.0
            off += float(torch.linalg.vector_norm(one - two, dtype=_wide(one)) ** 2)
            size += float(torch.linalg.vector_norm(two, dtype=_wide(two)) ** 2)
    return (off / size) ** 0.5 if off else 0.0


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


def _first(state: State, batch: int, count: int) -> State:
    return state._replace(
        leaves=tuple(leaf[:count] if has_batch(leaf, batch) else leaf for leaf in state.leaves)
    )
