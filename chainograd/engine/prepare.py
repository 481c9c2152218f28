"""Makes a run: finds what the step captures, and notes what its steps will see."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from chainograd.blocks.choice import Blocks
from chainograd.captured.find import Captured, find_captured
from chainograd.captured.generators import UnlistedGenerators
from chainograd.captured.stand_ins import current_stand_ins
from chainograd.captured.wrappers import refuse_cuda_graphs
from chainograd.engine.abstract_step import AbstractStep, GraphOptions
from chainograd.engine.first_call import FirstCalls
from chainograd.engine.microbatch import SlicedStep
from chainograd.engine.run import Run
from chainograd.engine.run_options import RunOptions, StepKind
from chainograd.engine.shared import SharedTensors
from chainograd.engine.slices import batch_of
from chainograd.engine.step import Step
from chainograd.engine.surroundings import Surroundings
from chainograd.frozen.conditions import takes_fast_path
from chainograd.frozen.layers import Saving
from chainograd.plans.plan import Plan
from chainograd.replay.context import StepContext
from chainograd.replay.rng import RNGSources
from chainograd.state import NO_ARGUMENTS, State, refuse_hidden, wants_gradient
from chainograd.tensors.devices import is_accelerator


@dataclass(frozen=True, slots=True)
class Preparation:
    """What one chain makes its runs from, checked already.

    Attributes:
        function: The user's step.
        num_steps: M.
        plan: What is kept and what is run again.
        params: Tensors that the steps use, besides those that are found.
        generators: Generators that the steps draw from.
        micro_batch: Samples in a slice; None is the whole batch at once.
        blocks: The blocks that graphs may be cut into, or where to look for them.
        watch_frozen: Whether frozen layers may keep less.
        options: What else the caller has chosen.
        first_calls: What the chain has found out so far.
    """

    function: Callable[..., Any]
    num_steps: int
    plan: Plan
    params: Sequence[Tensor]
    generators: Sequence[Generator]
    micro_batch: int | None
    blocks: Blocks
    watch_frozen: bool
    options: RunOptions
    first_calls: FirstCalls

    def run(self, x: Any, args: Any, kwargs: Any) -> Run:
        """Return a run on a state, before its first step.

        Raises:
            ChainError: If the step captures what would make the gradients wrong.
        """
        x_T = State.of(x)
        refuse_hidden(x_T.leaves, wants_gradient, "The state that enters step 0")
        arguments = State.of((args, kwargs)) if args or kwargs else NO_ARGUMENTS
        modules = [leaf for leaf in arguments.leaves if not isinstance(leaf, Tensor)]
        captured = find_captured(self.function, modules)
        # Each once: the sums of a tensor that was there twice would be added to each other.
        named = {id(tensor): tensor for tensor in self.params if tensor.requires_grad}
        found = [tensor for tensor in captured.tensors if id(tensor) not in named]
        tensors = [*named.values(), *found]
        shared = SharedTensors(arguments, tensors, current_stand_ins(tensors), captured.sharded)
        leaves = (*x_T.tensors, *arguments.tensors)
        kind = StepKind(_shapes(leaves, captured), captured.compiled, captured.counts_passes)
        devices = {t.device for t in (*leaves, *named.values())} | captured.devices
        if captured.cuda_graphs and any(map(is_accelerator, devices)):
            refuse_cuda_graphs()
        step = self._step(shared, x_T, captured, kind)
        surroundings = self._surroundings(shared, captured, devices)
        # Not of `captured`, which holds tensors of earlier calls and so their graphs.
        modules = [] if captured.sharded else [module for module, _ in captured.modes]
        found = partial(self.first_calls.blocks, modules, self.blocks)
        return Run(step, self.plan, x_T, self.options, kind, surroundings, found)

    def _step(
        self, shared: SharedTensors, x_T: State, captured: Captured, kind: StepKind
    ) -> AbstractStep:
        options = GraphOptions(signed=not captured.scripted, saves=self.first_calls.saves)
        options.uncut = self.first_calls.uncut
        if self.watch_frozen and not captured.compiled and not takes_fast_path(captured.modes):
            saving = self.first_calls.saving.setdefault(kind.shapes, Saving())
            options.layers = saving.recording()
        step = Step.of(self.function, self.num_steps, shared, options)
        if self.micro_batch is None:
            return step
        return SlicedStep(step, batch_of(x_T), self.micro_batch)

    def _surroundings(
        self, shared: SharedTensors, captured: Captured, devices: set[torch.device]
    ) -> Surroundings:
        rng = RNGSources(devices, self.generators)
        listed = [*self.generators, *rng.defaults]
        return Surroundings(
            shared,
            StepContext.now({device.type for device in devices}, captured.modes),
            rng,
            UnlistedGenerators(captured.generators, listed),
        )


def _shapes(leaves: Sequence[Tensor], captured: Captured) -> Hashable:
    """Return what is equal for calls for which the same holds: note [First calls]."""
    key = tuple((t.shape, t.dtype, t.device, t.requires_grad) for t in leaves)
    return (key, len(captured.buffers))  # modules in training may look at the batch
