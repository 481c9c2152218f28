"""One call of a chain as data: what its forward pass leaves for its backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from chainograd.blocks.find import FoundBlocks
from chainograd.engine.abstract_step import AbstractCut, AbstractStep
from chainograd.engine.comparison import Comparison
from chainograd.engine.cutting import Cut
from chainograd.engine.first_pass import FirstPass
from chainograd.engine.graph import Mark
from chainograd.engine.kept_attention import KeptAttention
from chainograd.engine.memory import RunMemory
from chainograd.engine.run_inputs import RunInputs
from chainograd.engine.run_options import RunOptions, StepKind
from chainograd.engine.shared import SharedTensors
from chainograd.engine.surroundings import Surroundings
from chainograd.engine.unknown_leaves import refuse_unknown_leaves
from chainograd.plans.plan import Action, Backprop, Level, Plan
from chainograd.plans.restrict import restricted
from chainograd.replay.verify import Verifier, Verify
from chainograd.report.log import Log
from chainograd.state import State, wants_gradient
from chainograd.storage.kept_tensors import InPlace
from chainograd.torch_internals.modes import is_fake


@dataclass(slots=True, eq=False)
class Run:
    """One call of a chain.

    Attributes:
        step: The steps.
        plan: What is kept and what is run again.
        x_T: The state that enters step 0.
        options: What the caller has chosen.
        kind: What is known of the step before it runs.
        surroundings: What steps see besides their arguments.
        find_blocks: Returns the blocks that steps' graphs may be cut into.
        shared: What the steps share.
        inputs: Tensors outside that gradients are returned for.
        first_pass: What the forward pass has found out.
        memory: The states and graphs that are kept.
        comparison: Compares reruns with first runs.
        log: What the run took.
        running: Backward passes through a trajectory, by autograd's numbers for them.
        call: Stands for this call in the marks of graphs.
        twice: Whether a backward pass is itself to be differentiated, from x_T on.
    """

    step: AbstractStep
    plan: Plan
    x_T: State
    options: RunOptions
    kind: StepKind
    surroundings: Surroundings
    find_blocks: Callable[[], FoundBlocks]
    shared: SharedTensors = field(init=False)
    inputs: RunInputs = field(init=False)
    first_pass: FirstPass = field(init=False)
    memory: RunMemory = field(init=False)
    comparison: Comparison = field(init=False)
    log: Log = field(init=False)
    running: WeakValueDictionary[int, Any] = field(default_factory=WeakValueDictionary)
    call: object = field(default_factory=object)
    twice: bool = False

    def __post_init__(self) -> None:
        self.shared = self.step.shared
        self.inputs = RunInputs(self.x_T, self.shared)
        wanted = [wants_gradient(leaf) for leaf in self.x_T.leaves]
        self.first_pass = FirstPass([wanted], [self.x_T.spec])
        self.x_T = self.x_T.detached()
        self.memory = RunMemory(self.plan.num_steps)
        self.comparison = self._comparison()
        self.log = Log(self.x_T.device, self.options.progress)
        self.plan = self.as_run(self.plan)

    def _comparison(self) -> Comparison:
        # Fake tensors have no values to compare.
        fake = any(is_fake(leaf) for leaf in self.x_T.tensors)
        verify: Verify = "off" if fake else self.options.verify
        half = [a.dtype for a in self.surroundings.context.autocast if a.enabled]
        coarsest = max(half, key=lambda dtype: torch.finfo(dtype).eps, default=None)
        return Comparison(
            self.shared,
            Verifier(verify, self.options.store.dtype, coarsest),
            Verifier(verify, None, coarsest),
            self.surroundings.unlisted_generators,
        )

    def as_run(self, plan: Plan) -> Plan:
        """Return a plan as far as the steps that the gradient may pass need it."""
        steps = self.options.grad_steps
        return plan if steps is None else restricted(plan, steps)

    @property
    def blocks(self) -> FoundBlocks:
        """The blocks that steps' graphs may be cut into."""
        return self.find_blocks()

    def level(self, i: int) -> Level:
        """Return the level of step i's graph."""
        return Level(self.plan.program.levels[i])

    def cut(self, i: int, *, kept: bool) -> AbstractCut | None:
        """Return how the graph of step i is made; None if it is whole.

        Args:
            i: The step.
            kept: Whether the graph is kept from the forward pass to the backward pass.
        """
        level = self.level(i)
        if Level.BLOCKS in level:
            keeper = self.memory.keeper if kept else InPlace()
            attention = Level.ATTENTION in level
            return Cut(self.blocks, i, self.surroundings, self.comparison, keeper, attention)
        if level and not kept:
            return self._attention(i)
        return None

    def _attention(self, i: int) -> KeptAttention:
        if i not in self.memory.attention:
            kept = KeptAttention(i, self.comparison, self.memory.keeper)
            self.memory.attention[i] = kept
        return self.memory.attention[i]

    def lasting_tensors(self) -> Iterator[Tensor]:
        """Yield the tensors that are on the device throughout the call."""
        yield from self.x_T.tensors
        yield from self.shared.tensors
        for module, _ in self.surroundings.context.modes:
            yield from module.parameters(recurse=False)
            yield from module.buffers(recurse=False)

    def mark(self, i: int) -> Mark:
        """Return what the nodes of step i's graph are marked with."""
        return Mark(self.call, i)

    def backward_actions(self) -> list[Action]:
        """Return the backward actions until the first step that a gradient needs is done."""
        actions, first = list(self.plan.backward), self.first_pass.first
        if first in (0, self.plan.num_steps):
            return actions
        return actions[: actions.index(Backprop(first)) + 1]

    def leave_out_unused(self) -> None:
        """Release what steps could reach and do not use, as the plain loop's graph does.

        Its hooks would be called, with a gradient of None, and autograd would go into its graph: a
        step's object may hold what is left of an iteration before, whose graph is freed by now.
        """
        self.shared.forget_unused(self.first_pass.used)
        self.comparison.changes.forget_unused()
        self.inputs.leave_out(self.first_pass.entered[0], self.first_pass.used, self.shared)
        if not self.inputs.tensors:  # then a graph leads to nothing that the chain knows
            unknown_leaves = [
                each for graph in self.memory.graphs.values() for each in graph.unknown_leaves
            ]
            self.memory.graphs.clear()
            refuse_unknown_leaves(unknown_leaves)

    def release(self) -> None:
        """Free what is kept, and the store's room for it."""
        self.comparison.forget()
        self.memory.release()
