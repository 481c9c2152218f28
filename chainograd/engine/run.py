"""One call of a chain as data: what its forward pass leaves for its backward passes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from chainograd.engine.comparison import Comparison
from chainograd.engine.graph import Mark
from chainograd.engine.memory import RunMemory
from chainograd.engine.shared import SharedTensors
from chainograd.engine.step import AbstractStep
from chainograd.engine.step_graph import Alias, StepResult
from chainograd.engine.surroundings import Surroundings
from chainograd.engine.unknown_leaves import refuse_unknown_leaves
from chainograd.plans.plan import Action, Backprop, Plan
from chainograd.plans.restrict import restricted
from chainograd.replay.verify import Verifier, Verify
from chainograd.report.log import Log
from chainograd.state import State, wants_gradient
from chainograd.storage.store import Store
from chainograd.torch_internals.modes import is_fake

Transform = Callable[[int, Any], Any]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the caller of a chain has chosen.

    Attributes:
        verify: How a recomputed state is compared with the first one.
        transform: Applied to the cotangent of each node.
        grad_steps: Steps that the gradient may pass; None is all of them.
        store: Where nodes live.
        progress: Whether to show a bar.
    """

    verify: Verify = "exact"
    transform: Transform | None = None
    grad_steps: frozenset[int] | None = None
    store: Store = field(default_factory=Store)
    progress: bool = False


@dataclass(frozen=True, slots=True)
class StepKind:
    """What was found out about the user's step before it runs.

    Attributes:
        shapes: Equal for calls for which the same holds: note [First calls].
        compiled: Whether torch.compile made a part of it.
        counts_passes: The class of a module whose hooks pair forward and backward passes.
    """

    shapes: Hashable
    compiled: bool = False
    counts_passes: str | None = None


class RunInputs:
    """Tensors outside that a run returns gradients for.

    Attributes:
        tensors: The tensors: leaves of x_T first, then what the steps share.
        of_x_T: The places of the leaves of x_T.
        of_steps: The places of the others among what the steps share.
    """

    def __init__(self, x_T: State, shared: SharedTensors) -> None:
        self.of_x_T = [place for place, leaf in enumerate(x_T.leaves) if wants_gradient(leaf)]
        self.of_steps = list(range(len(shared.inside)))
        self.tensors = [x_T.leaves[place] for place in self.of_x_T] + shared.outside

    @property
    def steps_tensors(self) -> list[Tensor]:
        """The tensors that the steps share."""
        return self.tensors[len(self.of_x_T) :]

    def leave_out(self, entered: dict[int, int], used: set[int], shared: SharedTensors) -> None:
        """Leave out the leaves of x_T that step 0 did not enter, and what no step uses."""
        outer = dict(zip(self.of_x_T, self.tensors, strict=False))
        self.of_x_T = [place for place in self.of_x_T if place in entered]
        self.of_steps = sorted(used)
        outside = shared.outside
        self.tensors = [outer[p] for p in self.of_x_T] + [outside[at] for at in self.of_steps]


@dataclass(slots=True, eq=False)
class FirstPass:
    """What the forward pass has found out about the steps so far.

    Attributes:
        wanted: Which leaves of each state need a gradient.
        specs: How the leaves of each state belong together.
        used: Places of the tensors that the steps share which some step uses.
        entered: How often each step uses the leaves of its state, by their places.
        aliases: Leaves that each step returns which are tensors from elsewhere.
        first: The first step that a gradient needs; those before it are never run again.
    """

    wanted: list[list[bool]]
    specs: list[Any]
    used: set[int] = field(default_factory=set)
    entered: list[dict[int, int]] = field(default_factory=list)
    aliases: list[dict[int, Alias]] = field(default_factory=list)
    first: int = 0

    def note(self, i: int, result: StepResult) -> None:
        """Note what the first run of step i has shown."""
        self.wanted.append(result.wanted)
        self.specs.append(result.leaving.spec)
        self.used |= result.used
        self.entered.append(result.entered)
        self.aliases.append(result.aliases)
        if i == self.first and not any(result.wanted):
            self.first = i + 1


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

    def passes(self, i: int) -> bool:
        """Return whether the gradient may pass step i."""
        return self.options.grad_steps is None or i in self.options.grad_steps

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
