"""What the forward half of a run leaves for its backward half."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from chainograd.captured.generators import UnlistedGenerators
from chainograd.engine.graph import Mark
from chainograd.engine.step import Alias, StepGraph, Steps, refuse_unknown_leaves
from chainograd.plans.plan import Action, Backprop, Plan
from chainograd.plans.planners import restricted
from chainograd.replay.buffers import Buffers, buffer_copies
from chainograd.replay.context import Flags, StepContext
from chainograd.replay.rng import Replayed, RNGSources, RNGState, fork_rng
from chainograd.replay.side_effects import without_side_effects
from chainograd.replay.verify import Verifier, Verify
from chainograd.report.log import Log
from chainograd.state import State, wants_gradient
from chainograd.storage.store import CallStorage, Store, StoredState
from chainograd.torch_internals.modes import is_fake

Transform = Callable[[int, Any], Any]


@dataclass(slots=True, eq=False)
class Run:
    """One call of a chain: what its forward pass left for its backward pass.

    Attributes:
        steps: The steps, with what they see.
        plan: What is kept and what is run again.
        x_T: The state that enters step 0.
        rng: Random streams that steps may draw from.
        verify: How a recomputed state is compared with the first one.
        context: What else steps saw.
        transform: Applied to the cotangent of each node.
        grad_steps: Steps that the gradient may pass; None is all of them.
        store: Where nodes live.
        progress: Whether to show a bar.
        unlisted_generators: Generators that the chain was not told of.
        counts_passes: The class of a module whose hooks pair forward and backward passes.
        compiled: Whether torch.compile made a part of the steps.
        mode: What calls have in common for which the same was found out.
        nodes: States that are kept, by the index of the step they enter.
        graphs: Steps that are recorded.
        random: Where the random streams stood before each step, and at the end.
        wanted: Which leaves of each state need a gradient, as far as steps have run.
        specs: How the leaves of each of these states belong together.
        trained: Before each step, which captured tensors required a gradient.
        used: Places of the tensors that the steps share which some step uses.
        entered: How often each step uses the leaves of its state, by their places.
        aliases: Leaves that each step gives which are tensors that are elsewhere already.
        left: Steps, from the first on, that no backward pass has freed.
        reached: How far backward passes that freed steps came: the next action, the state there.
        elsewhere: Whether a backward pass runs in another context than the forward pass.
        twice: Whether a backward pass is itself to be differentiated, from x_T on.
        first: The first step that a gradient needs; those before it are never run again.
        verifier: Knows what states were like.
        foreseen: Knows what they were like when costs were measured, if they were.
        inputs: Tensors outside that gradients are returned for: of x_T, then of the steps.
        asked_of_x_T: The places of the former.
        asked: The places of the latter among what the steps share.
    """

    steps: Steps
    plan: Plan
    x_T: State
    rng: RNGSources
    verify: Verify
    context: StepContext
    transform: Transform | None = None
    grad_steps: frozenset[int] | None = None
    store: Store = field(default_factory=Store)
    progress: bool = False
    unlisted_generators: UnlistedGenerators = field(
        default_factory=lambda: UnlistedGenerators([], [])
    )
    mode: Any = None
    counts_passes: str | None = None
    compiled: bool = False
    nodes: dict[int, StoredState] = field(default_factory=dict)
    graphs: dict[int, StepGraph] = field(default_factory=dict)
    random: list[RNGState] = field(default_factory=list)
    trained: list[list[bool]] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    entered: list[dict[int, int]] = field(default_factory=list)
    aliases: list[dict[int, Alias]] = field(default_factory=list)
    first: int = 0
    left: int = field(init=False)
    reached: tuple[int, State | None] = (0, None)
    twice: bool = False
    elsewhere: bool = True
    wanted: list[list[bool]] = field(init=False)
    specs: list[Any] = field(init=False)
    inputs: list[Tensor] = field(init=False)
    asked_of_x_T: list[int] = field(init=False)
    asked: list[int] = field(init=False)
    verifier: Verifier = field(init=False)
    foreseen: Verifier = field(init=False)
    buffers: Buffers = field(init=False)
    storage: CallStorage = field(init=False)
    log: Log = field(init=False)
    running: WeakValueDictionary[int, Any] = field(default_factory=WeakValueDictionary)
    call: object = field(default_factory=object)  # stands for this call in the marks of graphs

    def __post_init__(self) -> None:
        self.left = self.plan.num_steps
        self.wanted = [[wants_gradient(leaf) for leaf in self.x_T.leaves]]
        self.specs = [self.x_T.spec]
        self.asked_of_x_T = [place for place, wanted in enumerate(self.wanted[0]) if wanted]
        self.asked = list(range(len(self.steps.shared)))
        self.inputs = [self.x_T.leaves[p] for p in self.asked_of_x_T] + self.steps.inputs
        self.x_T = self.x_T.detached()
        if any(is_fake(leaf) for leaf in self.x_T.tensors):
            self.verify = "off"  # there are no values to compare
        half = [a.dtype for a in self.context.autocast if a.enabled]
        coarsest = max(half, key=lambda dtype: torch.finfo(dtype).eps, default=None)
        self.verifier = Verifier(self.verify, self.store.dtype, coarsest)
        self.foreseen = Verifier(self.verify, None, coarsest)
        self.buffers = Buffers(self.context.modes)
        self.log = Log(self.x_T.device, self.progress)
        self.plan = self.as_run(self.plan)

    @property
    def asked_of_steps(self) -> list[Tensor]:
        """The inputs beside those of x_T."""
        return self.inputs[len(self.asked_of_x_T) :]

    def as_run(self, plan: Plan) -> Plan:
        """Return a plan as far as the steps that the gradient may pass need it."""
        return plan if self.grad_steps is None else restricted(plan, self.grad_steps)

    def begin_step(self) -> None:
        """Note which captured tensors require a gradient before the next step runs first."""
        now = [tensor.requires_grad for tensor in self.steps.inner_captured]
        same = self.trained and now == self.trained[-1]
        self.trained.append(self.trained[-1] if same else now)

    def mark(self, i: int) -> Mark:
        """Return what the nodes of step i's graph are marked with."""
        return Mark(self.call, i)

    def leave_out_unused(self) -> None:
        """Let go what steps could reach and do not use, as the plain loop's graph does.

        Its hooks would be called, with a gradient of None, and autograd would go into its graph: a
        step's object may hold what is left of an iteration before, whose graph is freed by now.
        """
        outer = dict(zip(self.asked_of_x_T, self.inputs, strict=False))
        self.steps.forget_unused(self.used)
        self.asked_of_x_T = [place for place in self.asked_of_x_T if place in self.entered[0]]
        self.asked = sorted(self.used)
        inputs = self.steps.inputs
        self.inputs = [outer[p] for p in self.asked_of_x_T] + [inputs[at] for at in self.asked]
        if not self.inputs:  # then a graph leads to nothing that the chain knows
            unknown_leaves = [
                each for recorded in self.graphs.values() for each in recorded.unknown_leaves
            ]
            self.graphs.clear()
            refuse_unknown_leaves(unknown_leaves)

    def release(self) -> None:
        """Free what is kept, and the store's room for it."""
        self.left, self.reached = 0, (0, None)
        for kept in (self.nodes, self.graphs, self.verifier.digests, self.verifier.samples):
            kept.clear()
        self.storage.close()

    @contextmanager
    def beforehand(self) -> Iterator[None]:
        """Let steps run that the plain loop does not run, and leave no trace."""
        others = [leaf for leaf in self.steps.arguments.leaves if not isinstance(leaf, Tensor)]
        # FSDP2 exchanges parameters by itself, and knows which ones are there.
        traces = (
            nullcontext() if self.steps.sharded else without_side_effects(self.steps.step, others)
        )
        with torch.no_grad(), traces, self.unlisted_generators.untouched(), self.like_first():
            yield

    @contextmanager
    def like_first(self) -> Iterator[None]:
        """Put in force what steps saw in the forward pass, and leave no trace."""
        with ExitStack() as stack:
            stack.enter_context(fork_rng(self.rng))
            stack.enter_context(buffer_copies(self.buffers.beforehand()))
            stack.enter_context(Flags(self.context.modes))
            stack.enter_context(self.context.in_force())
            yield

    def again(self, i: int) -> Again:
        """Return what step i runs again in."""
        return Again(self, i)

    def backward_actions(self) -> list[Action]:
        """Return the backward actions until the first step that a gradient needs is done."""
        actions = list(self.plan.backward)
        if self.first in (0, self.plan.num_steps):
            return actions
        return actions[: actions.index(Backprop(self.first)) + 1]

    def plain_loop(self, inputs: list[Tensor] | None = None) -> tuple[list[State], list[Tensor]]:
        """Run all steps with one graph through all of them.

        Args:
            inputs: What to run them on, in place of leaves with the values of ``inputs``.

        Returns:
            The states, x_T first, and the tensors that gradients can be taken for.
        """
        self.rng.set(self.random[0])
        x_T, steps = self.x_T.entering(self.wanted[0]), self.steps
        if inputs is not None:
            count = len(self.asked_of_x_T)
            given = dict(zip(self.asked_of_x_T, inputs[:count], strict=True))
            leaves = tuple(given.get(place, leaf) for place, leaf in enumerate(x_T.leaves))
            x_T = x_T._replace(leaves=leaves)
            steps = steps.on(dict(zip(self.asked, inputs[count:], strict=True)))
        states = [x_T]
        for i in range(self.plan.num_steps):
            with torch.set_grad_enabled(self.passes(i)):
                states.append(steps.run(i, states[-1]))
        own = [x_T.leaves[place] for place in self.asked_of_x_T]
        return states, [*own, *(steps.shared[at] for at in self.asked)]

    def passes(self, i: int) -> bool:
        """Return whether the gradient may pass step i."""
        return self.grad_steps is None or i in self.grad_steps

    def droppable(self, error: Exception, i: int, nodes: dict[int, StoredState]) -> bool:
        """Return whether step i can go on without the kept graphs that filled the memory."""
        kept_nodes = all(j in nodes for j in (*self.graphs, i))
        return bool(self.graphs) and kept_nodes and _out_of_memory(error)

    def drop_graphs(self, i: int) -> None:
        """Let all kept graphs go, since memory ran out at step i."""
        count = len(self.graphs)
        self.graphs.clear()
        warnings.warn(
            f"Memory ran out at step {i} with {count} graphs kept. They are dropped, and their "
            "steps will be run again in the backward pass. A smaller `plan` avoids this.",
            stacklevel=2,
        )


class Again:
    """What a step runs again in: its context, its random numbers, copies of its buffers.

    It may be entered several times, for a step that runs slice by slice: each time the random
    streams go on where they were left, and outside they are the caller's.
    """

    def __init__(self, run: Run, i: int) -> None:
        self.run, self.start = run, run.random[i]
        self.drew = self.start is not run.random[i + 1]
        steps, modes = run.steps, run.context.modes
        self.parts: list[AbstractContextManager[object]] = []
        if self.drew:
            self.parts.append(Replayed(run.rng, self.start))
        if modes or steps.inner_captured:
            self.parts.append(Flags(modes, steps.inner_captured, run.trained[i]))
        self.buffers = run.buffers.of_step(i)

    def begin_again(self) -> None:
        """Put the random numbers back to the step's first one, inside."""
        if self.drew:
            self.run.rng.set(self.start)

    def __enter__(self) -> None:
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part)
            if self.buffers:
                stack.enter_context(buffer_copies(self.buffers))
            if self.run.elsewhere:
                stack.enter_context(self.run.context.in_force())
            self.stack = stack.pop_all()

    def __exit__(self, *error: Any) -> None:
        self.stack.close()


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )
