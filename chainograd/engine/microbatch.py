"""Steps that run over slices of the batch, with the graph of one slice at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chainograd.engine.accumulate import GradAccumulator
from chainograd.engine.graph import Mark
from chainograd.engine.step import ReplayHooks, StepGraph, StepResult, Steps, refuse_unknown_leaves
from chainograd.errors import ChainError
from chainograd.replay.signature import joined
from chainograd.state import Cotangents, State, differentiable

# Note [Slices]
# 1. The batch size N is the first dimension of the first floating tensor of x_T that has one.
#    Tensors of the state and of the arguments whose first dimension is N are cut, all others are
#    handed to every slice whole. What is whole in a state must come out of every slice the same.
# 2. A step's slices run in order, in the first run and in each rerun, so they draw the noise they
#    drew. Noise is that of slices: another sample than the whole batch would give, as good.
# 3. Recording a step only remembers it: its slices are recorded when the cotangent is there, each
#    freed before the next. So no graph outlives its step, and every step is run twice.


@dataclass(slots=True, eq=False)
class Waiting(StepGraph):
    """A step that will be recorded slice by slice.

    Attributes:
        index: The step.
        rerun: What goes with running it again.
    """

    index: int = 0
    rerun: ReplayHooks = field(kw_only=True)


@dataclass(slots=True, eq=False)
class SlicedSteps(Steps):
    """Steps that run over slices of the batch.

    Attributes:
        batch: N, the batch size.
        size: Samples in a slice.
    """

    batch: int = 1
    size: int = 1

    def run(self, index: int, state: State) -> State:
        """Run one step on every slice, in the grad mode that is in force."""
        return self._joined(index, state, [self._called(index, state, j) for j in self._starts])

    def _first(
        self, index: int, state: State, wanted: list[bool], mark: Mark, *, light: bool
    ) -> StepResult:
        """Run a step with graphs that are let go, that of each slice before the next is made."""
        entering, parts = state.entering(wanted), []
        for j in self._starts:

            def called(i: int, whole: State, j: int = j) -> State:
                with nullcontext() if light else self.recording():
                    return self._called(i, whole, j)

            parts.append(self._let_go(index, entering, mark, called, light=light))
        return self._one(index, state, parts)

    def _one(self, index: int, state: State, parts: list[StepResult]) -> StepResult:
        """Return the outcome of the whole batch from those of its slices."""
        return StepResult(
            self._joined(index, state, [part.leaving for part in parts]),
            [any(wanted) for wanted in zip(*(part.wanted for part in parts), strict=True)],
            set[int]().union(*(part.used for part in parts)),
            joined(part.signature for part in parts),
            # Each of their gradients is whole: the slices' are added up first.
            dict.fromkeys(set[int]().union(*(part.entered for part in parts)), 1),
            dict(set(parts[0].aliases.items()).intersection(*(p.aliases.items() for p in parts))),
        )

    def again(self, index: int, state: State, wanted: list[bool], rerun: ReplayHooks) -> StepGraph:
        """Remember a step that is to be recorded slice by slice."""
        entering = state.entering(wanted)
        nothing = state._replace(leaves=())
        return Waiting(entering, nothing, {}, None, {}, [], index=index, rerun=rerun)

    def backprop(
        self,
        recorded: StepGraph,
        after: Cotangents,
        at_node: Cotangents,
        accumulator: GradAccumulator,
    ) -> Cotangents:
        """Record each slice of a step and send its share of the cotangents back through it."""
        assert isinstance(recorded, Waiting)
        i, entering, rerun = recorded.index, recorded.entering, recorded.rerun
        before, parts = at_node, []
        for j in self._starts:

            def called(i: int, whole: State, j: int = j) -> State:
                with self.recording():
                    return self._called(i, whole, j)

            with rerun.around:
                graph = self._recorded(i, entering, rerun.mark, called)
            leaving = graph.leaving
            share = {
                place: g[j : j + self.size] if self._is_cut(entering, leaving, place, j) else g
                for place, g in after.items()
                if j == 0 or self._is_cut(entering, leaving, place, j)
            }
            # What the slices so far have summed up goes along: note [Sums in order].
            accumulator.begin()  # each is added once: without kept graphs (3) nothing is done again
            before = Steps.backprop(self, graph, share, before, accumulator)
            parts.append(self.outcome(graph))
            unknown_leaves = graph.unknown_leaves
            del leaving, graph
            refuse_unknown_leaves(unknown_leaves)
        rerun.check(self._one(i, entering, parts))
        return before

    @property
    def _starts(self) -> range:
        return range(0, max(self.batch, 1), self.size)  # an empty batch is one slice

    def _called(self, index: int, state: State, j: int) -> State:
        """Call the user's step on the slice that begins with sample j."""
        part = self._part(state, j)
        return self.call(index, part, self._part(self.inner_arguments, j))

    def _part(self, state: State, j: int) -> State:
        return state._replace(
            leaves=tuple(
                leaf[j : j + self.size] if has_batch(leaf, self.batch) else leaf
                for leaf in state.leaves
            )
        )

    def _joined(self, index: int, entering: State, parts: list[State]) -> State:
        """Return the state of the whole batch from those of its slices."""
        leaves = []
        for place, first in enumerate(parts[0].leaves):
            column = [part.leaves[place] for part in parts]
            if self._is_cut(entering, parts[0], place, 0):
                leaves.append(torch.cat(column))
            elif all(map(_same, column, [first] * len(column))):
                leaves.append(first)
            else:
                raise ChainError(
                    f"Step {index} gave another {_described(first)} for each slice of "
                    f"`micro_batch={self.size}`, so it is not known what it is for the whole batch "
                    f"of {self.batch}. Give it a first dimension of {self.batch}, one entry a "
                    "sample, or leave `micro_batch` out."
                )
        return parts[0]._replace(leaves=tuple(leaves))

    def _is_cut(self, entering: State, leaving: State, place: int, j: int) -> bool:
        """Return whether a leaf that leaves the slice beginning with sample j is a part."""
        leaf = leaving.leaves[place]
        if entering.spec == leaving.spec:
            before = entering.leaves[place]
            whole = isinstance(before, Tensor) and not has_batch(before, self.batch)
            if whole and isinstance(leaf, Tensor) and leaf.shape == before.shape:
                return False
        return has_batch(leaf, min(self.size, self.batch - j))


def has_batch(leaf: Any, batch: int) -> bool:
    """Return whether a leaf is a tensor whose first dimension is the batch."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch


def batch_of(x_T: State) -> int:
    """Return the batch size of a state.

    Raises:
        ValueError: If it has none.
    """
    sizes = [leaf.shape[0] for leaf in x_T.leaves if differentiable(leaf) and leaf.dim() > 0]
    if not sizes:
        raise ValueError(
            "`micro_batch` cuts the first dimension of the state, but `x` holds no floating tensor "
            "with one. Leave `micro_batch` out."
        )
    return sizes[0]


def difference(steps: SlicedSteps, x_T: State, room: float) -> tuple[float, int]:
    """Return how far a step takes two slices apart from where it takes them together, and which.

    It is relative to the state; rounding aside it is zero, unless samples see each other, or an
    argument was cut that is no batch. The first step that is off by more than ``room`` counts.
    """
    pair, x = _pair(steps, x_T)
    half, mark = pair.size, Mark(object(), 0)
    for i in range(steps.num_steps):
        pair.size = half
        apart = _given(pair, i, x, mark)
        pair.size = 2 * half
        x = _given(pair, i, x, mark)
        steps.saves = pair.saves  # so that it is known before noise is drawn for good
        off = _apart(apart, x)
        if off > room:
            return off, i
    return 0.0, 0


def influence(
    steps: SlicedSteps, x_T: State, room: float, rewind: Callable[[], None]
) -> tuple[float, int]:
    """Return how far the first of two slices is moved by other values of the second, and when.

    The same noise is drawn for both. This cannot see an argument that was cut and is no batch. The
    first step that is off by more than ``room`` counts.
    """
    pair, x = _pair(steps, x_T)
    half, mark = pair.size, Mark(object(), 0)
    pair.size = 2 * half
    other = x._replace(leaves=tuple(_other(leaf, half) for leaf in x.leaves))
    rewind()
    states = []
    for i in range(steps.num_steps):
        x = _given(pair, i, x, mark)
        states.append(_first(x, 2 * half, half))
    rewind()
    for i in range(steps.num_steps):
        other = _given(pair, i, other, mark)
        off = _apart(_first(other, 2 * half, half), states[i])
        if off > room:
            return off, i
    return 0.0, 0


def _given(pair: SlicedSteps, i: int, x: State, mark: Mark) -> State:
    wanted = [differentiable(leaf) for leaf in x.leaves]
    return pair.advance(i, x, wanted, mark._replace(step=i), lambda: None).leaving


def _pair(steps: SlicedSteps, x_T: State) -> tuple[SlicedSteps, State]:
    """Return the steps and the state for the first two slices, as one batch."""
    half = min(steps.size, steps.batch // 2)
    x, arguments = (_first(state, steps.batch, 2 * half) for state in (x_T, steps.inner_arguments))
    pair = SlicedSteps(
        steps.step, steps.num_steps, arguments, steps.captured, steps.buffers, batch=2 * half
    )
    pair.size, pair.saves = half, steps.saves
    return pair, x


def _other(leaf: Any, half: int) -> Any:
    """Return a leaf with other values for its second slice."""
    if not (has_batch(leaf, 2 * half) and differentiable(leaf)):
        return leaf
    return torch.cat([leaf[:half], 1 - 2 * leaf[half:]])


def _apart(a: State, b: State) -> float:
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


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and torch.equal(a, b))
    return a is b or bool(a == b)


def _described(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"tensor of shape {tuple(leaf.shape)}"
    return f"value ({leaf!r} for the first)"
