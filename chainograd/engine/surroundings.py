"""What steps see besides their arguments: noted in first runs, put in force for reruns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from chainograd.captured.generators import UnlistedGenerators
from chainograd.engine.shared import SharedTensors
from chainograd.replay.buffers import Buffers, BufferSnapshot, buffer_copies
from chainograd.replay.context import Flags, StepContext
from chainograd.replay.rng import Replayed, RNGSources, RNGState, fork_rng
from chainograd.replay.side_effects import without_side_effects


@dataclass(slots=True, eq=False)
class Surroundings:
    """What the steps of one call see besides their arguments: note [Context].

    Attributes:
        shared: What the steps share.
        context: Autocast, settings, and the modes of modules.
        rng: Random streams that steps may draw from.
        unlisted_generators: Generators that the chain was not told of.
        buffers: Buffers that steps may change.
        has_buffers: Whether there are any.
        random: Where the random streams stood before each step, and at the end.
        trained: Before each step, which captured tensors required a gradient.
        elsewhere: Whether a backward pass runs in another context than the forward pass.
    """

    shared: SharedTensors
    context: StepContext
    rng: RNGSources
    unlisted_generators: UnlistedGenerators
    buffers: Buffers = field(init=False)
    has_buffers: bool = field(init=False)
    random: list[RNGState] = field(default_factory=list)
    trained: list[list[bool]] = field(default_factory=list)
    elsewhere: bool = True

    def __post_init__(self) -> None:
        self.buffers = Buffers(self.context.modes)
        self.has_buffers = bool(self.buffers.statistics or self.buffers.others)

    def begin(self) -> None:
        """Note where the random streams stand before step 0."""
        self.random = [self.rng.state()]

    def begin_step(self) -> Callable[[], None]:
        """Note what the next step sees in its first run; return what undoes that run's changes."""
        now = [tensor.requires_grad for tensor in self.shared.inner_captured]
        same = self.trained and now == self.trained[-1]
        self.trained.append(self.trained[-1] if same else now)
        snapshot = None
        if self.has_buffers:
            self.buffers.begin_step()
            snapshot = BufferSnapshot(self.buffers)
        return partial(self._rewind, self.random[-1], snapshot)

    def end_step(self, i: int) -> None:
        """Note where the random streams stand after the first run of step i."""
        self.random.append(self.rng.state(self.random[i]))
        self.unlisted_generators.ran(i)

    def _rewind(self, rng: RNGState, snapshot: BufferSnapshot | None) -> None:
        self.rng.set(rng)
        if snapshot is not None:
            snapshot.put_back()

    def of_rerun(self, i: int) -> Rerun:
        """Return the context that step i runs again in."""
        start = self.random[i]
        context = self.context if self.elsewhere else None
        return Rerun(self, i, start if start is not self.random[i + 1] else None, context)

    def of_block(self, i: int, start: RNGState | None, context: StepContext) -> Rerun:
        """Return the context that a block of step i runs again in.

        Args:
            i: The step.
            start: Where the random streams stood before the block; None if it drew nothing.
            context: What the block saw.
        """
        return Rerun(self, i, start, context if context.may_differ_here() else None, context.modes)

    @contextmanager
    def of_first_runs(self) -> Iterator[None]:
        """Put in force what steps saw in the forward pass, and leave no trace."""
        with ExitStack() as stack:
            stack.enter_context(fork_rng(self.rng))
            stack.enter_context(buffer_copies(self.buffers.beforehand()))
            stack.enter_context(Flags(self.context.modes))
            stack.enter_context(self.context.in_force())
            yield

    @contextmanager
    def of_trials(self, function: Callable[..., Any]) -> Iterator[None]:
        """Let steps run that the plain loop does not run, and leave no trace: note [Side effects].

        Args:
            function: The user's step.
        """
        leaves = self.shared.arguments.leaves
        others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        # FSDP2 exchanges parameters by itself, and knows which ones are there.
        traces = nullcontext() if self.shared.sharded else without_side_effects(function, others)
        untouched = self.unlisted_generators.untouched()
        with torch.no_grad(), traces, untouched, self.of_first_runs():
            yield


class Rerun:
    """The context that a step runs again in: its random numbers, modes, copies of its buffers.

    It may be entered several times, for a step that runs slice by slice. Each time the random
    streams go on where they were left, and outside they are the caller's.

    Args:
        surroundings: What the steps see.
        i: The step.
        start: Where the random streams stood before; None if nothing was drawn.
        context: What is to be put in force; None if it is in force.
        modes: Modules, and whether each was in training; by default those of the steps.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        i: int,
        start: RNGState | None,
        context: StepContext | None,
        modes: Sequence[tuple[Module, bool]] | None = None,
    ) -> None:
        self.rng, self.start, self.context = surroundings.rng, start, context
        modes, tensors = modes or surroundings.context.modes, surroundings.shared.inner_captured
        self.replayed = None if start is None else Replayed(surroundings.rng, start)
        self.flags = Flags(modes, tensors, surroundings.trained[i]) if modes or tensors else None
        self.buffers = surroundings.buffers.of_step(i) if surroundings.has_buffers else []
        self.stack: ExitStack | None = None

    def rewind(self) -> None:
        """Put the random numbers back to the step's first one, inside the context."""
        if self.start is not None:
            self.rng.set(self.start)

    def __enter__(self) -> None:
        # Flags alone, the commonest case, need no stack, which takes as long as a small operation.
        if self.replayed is None and self.context is None and not self.buffers:
            if self.flags is not None:
                self.flags.__enter__()
            return
        with ExitStack() as stack:
            if self.replayed is not None:
                stack.enter_context(self.replayed)
            if self.flags is not None:
                stack.enter_context(self.flags)
            if self.buffers:
                stack.enter_context(buffer_copies(self.buffers))
            if self.context is not None:
                stack.enter_context(self.context.in_force())
            self.stack = stack.pop_all()

    def __exit__(self, *error: Any) -> None:
        if self.stack is not None:
            self.stack.close()
        elif self.flags is not None:
            self.flags.__exit__()
