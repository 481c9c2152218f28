"""What the forward half of a run leaves for its backward half."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Module

from chainograd.kept import Look
from chainograd.plan import Action, Backprop, Plan
from chainograd.planners import restricted
from chainograd.replay import Digest, Verify, digest, sample
from chainograd.reporting import Log
from chainograd.states import State, differentiable, wants_gradient
from chainograd.steps import Recorded, Steps
from chainograd.stores import Node, Shelf, Store
from chainograd.streams import RandomStreams, Streams, undisturbed
from chainograd.surroundings import (
    Autocast,
    autocast_as,
    in_modes,
    uncached_parametrizations,
    unchanged,
    without_hooks,
)

Transform = Callable[[int, Any], Any]


@dataclass(slots=True, eq=False)
class Tape:
    """One call of a chain: what its forward pass left for its backward pass.

    Attributes:
        steps: The steps, with what they see.
        plan: What is kept and what is run again.
        x_T: The state that enters step 0.
        streams: Random streams that steps may draw from.
        verify: How a recomputed state is compared with the first one.
        autocast: The autocast states that were in force.
        modes: The modules that the steps reach, and whether each was in training.
        transform: Applied to the cotangent of each node.
        grad_steps: Steps that the gradient may pass; None is all of them.
        store: Where nodes live.
        progress: Whether to show a bar.
        nodes: States that are kept, by the index of the step they enter.
        graphs: Steps that are recorded.
        spent: Whether a backward pass has freed the nodes.
        twice: Whether a backward pass is itself to be differentiated, from x_T on.
        look: Looks at the first graphs, where none were seen yet: note [Kept tensors].
        first: The first step that a gradient needs; those before it are never run again.
        inputs: Tensors outside that gradients are returned for: of x_T, then of the steps.
    """

    steps: Steps
    plan: Plan
    x_T: State
    streams: RandomStreams
    verify: Verify
    autocast: tuple[Autocast, ...]
    modes: list[tuple[Module, bool]] = field(default_factory=list)
    transform: Transform | None = None
    grad_steps: frozenset[int] | None = None
    store: Store = field(default_factory=Store)
    progress: bool = False
    nodes: dict[int, Node] = field(default_factory=dict)
    graphs: dict[int, Recorded] = field(default_factory=dict)
    digests: dict[int, Digest] = field(default_factory=dict)
    samples: dict[int, tuple[Tensor | None, ...]] = field(default_factory=dict)
    random: list[Streams] = field(default_factory=list)
    look: Look | None = None
    first: int = 0
    spent: bool = False
    twice: bool = False
    x_T_wanted: list[bool] = field(init=False)
    inputs: list[Tensor] = field(init=False)
    shelf: Shelf = field(init=False)
    log: Log = field(init=False)

    def __post_init__(self) -> None:
        self.x_T_wanted = [wants_gradient(leaf) for leaf in self.x_T.leaves]
        outer = [leaf for leaf in self.x_T.leaves if wants_gradient(leaf)]
        self.inputs = outer + self.steps.inputs
        self.x_T = self.x_T.detached()
        if any(isinstance(leaf, FakeTensor) for leaf in self.x_T.tensors):
            self.verify = "off"  # there are no values to compare
        self.log = Log(self.x_T.device, self.progress)
        self.plan = self.as_run(self.plan)

    def as_run(self, plan: Plan) -> Plan:
        """Return a plan as far as the steps that the gradient may pass need it."""
        return plan if self.grad_steps is None else restricted(plan, self.grad_steps)

    def leave_out_unused(self) -> None:
        """Let go what steps could reach and were never handed, if it has a graph of its own.

        A step's object may hold what is left of an iteration before: a loss, features that a hook
        kept. Autograd would go into its graph, which is freed by now, with a gradient of None.
        """
        if self.steps.leave_out_unused():
            outer = self.inputs[: len(self.inputs) - len(self.steps.inputs)]
            self.inputs = outer + self.steps.inputs

    def let_go(self) -> None:
        """Free what is kept, and the store's room for it."""
        for kept in (self.nodes, self.graphs, self.digests, self.samples):
            kept.clear()
        self.shelf.close()

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Put in force what steps saw in the forward pass, and leave no trace."""
        with ExitStack() as stack:
            if self.draws:
                stack.enter_context(undisturbed(self.streams))
            stack.enter_context(in_modes(self.modes))
            stack.enter_context(unchanged(self.modes))
            stack.enter_context(without_hooks(self.steps.inner_captured))
            stack.enter_context(autocast_as(self.autocast))
            stack.enter_context(uncached_parametrizations())
            yield

    def backward_actions(self) -> list[Action]:
        """Return the backward actions until the first step that a gradient needs is done."""
        actions = list(self.plan.backward)
        if self.first in (0, self.plan.num_steps):
            return actions
        return actions[: actions.index(Backprop(self.first)) + 1]

    @property
    def draws(self) -> bool:
        """Whether any step drew from the streams."""
        return any(a is not b for a, b in zip(self.random, self.random[1:], strict=False))

    def plain_loop(self, inputs: list[Tensor] | None = None) -> tuple[list[State], list[Tensor]]:
        """Run all steps with one graph through all of them.

        Args:
            inputs: What to run them on, in place of leaves with the values of ``inputs``.

        Returns:
            The states, x_T first, and the tensors that gradients can be taken for.
        """
        if self.draws:
            self.streams.set(self.random[0])
        if inputs is None:
            x_T, steps = self.x_T.entering(self.x_T_wanted), self.steps
        else:
            coming = iter(inputs)
            pairs = zip(self.x_T.leaves, self.x_T_wanted, strict=True)
            leaves = tuple(next(coming) if wanted else leaf for leaf, wanted in pairs)
            x_T, steps = self.x_T._replace(leaves=leaves), self.steps.on(list(coming))
        states = [x_T]
        for i in range(self.plan.num_steps):
            with torch.set_grad_enabled(self.passes(i)):
                states.append(steps.run(i, states[-1]))
        return states, inputs or [*filter(wants_gradient, x_T.leaves), *steps.shared]

    @property
    def from_start(self) -> bool:
        """Whether x_T itself needs a gradient."""
        return any(self.x_T_wanted) and self.passes(0)

    def passes(self, i: int) -> bool:
        """Return whether the gradient may pass step i."""
        return self.grad_steps is None or i in self.grad_steps

    def droppable(self, error: Exception, i: int, nodes: dict[int, Node]) -> bool:
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

    def differentiable(self, i: int, place: int, leaf: Any) -> bool:
        """Return whether a leaf of state i depends, as far as is known, on what has a gradient."""
        if i <= self.first or not self.passes(i - 1):
            return False
        recorded = self.graphs.get(i - 1)
        if recorded is not None:
            return wants_gradient(recorded.leaving.leaves[place])
        return differentiable(leaf)

    def wanted(self, i: int, state: State) -> list[bool]:
        """Return which leaves of the state that enters step i need a gradient."""
        if i == 0:
            return self.x_T_wanted
        needed = self.passes(i - 1) and (i > self.first or self.from_start)
        return [needed and differentiable(leaf) for leaf in state.leaves]

    def rewind(self, i: int) -> None:
        """Put the random streams where they stood before step i, if it drew from them."""
        if self.random[i] is not self.random[i + 1]:
            self.streams.set(self.random[i])

    def note(self, i: int, state: State) -> None:
        """Remember what a later run of step i - 1 is compared with: a digest, or a sample."""
        if self.exact:
            self.digests[i] = digest(state.leaves)
        elif self.verify != "off":
            self.samples[i] = sample(state.leaves)

    @property
    def exact(self) -> bool:
        """Whether a state that is run again must be the same to the bit."""
        return self.verify == "exact" and self.store.dtype is None


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )
