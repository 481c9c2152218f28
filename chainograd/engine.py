"""Carries out the forward half of a plan, and remembers what its backward half needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Module

from chainograd.plan import Action, Advance, Backprop, Keep, Load, Plan, Record
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
    put_back,
    uncached_parametrizations,
    unchanged,
    without_hooks,
)

Transform = Callable[[int, Any], Any]
T = TypeVar("T")


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
        drew_on_host: Whether the steps drew from Python's or numpy's stream.
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
    first: int = 0
    spent: bool = False
    twice: bool = False
    drew_on_host: bool = False
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

    # The forward pass

    def forward(self, visit: Callable[[int, State], None]) -> None:
        """Carry out the forward actions; ``visit`` is shown every state that a step gives."""
        streams, buffers = self.streams, self.steps.buffers
        start = streams.state()
        values = [] if streams.closely else [buffer.clone() for buffer in buffers]
        self._carry_out(visit, start)
        self.drew_on_host = not start.same_on_host(streams.state())
        if self.drew_on_host and not streams.closely:  # note [Host streams], 3
            self.let_go()
            self.first, streams.closely = 0, True
            streams.set(start)
            put_back(buffers, values)
            self._carry_out(visit, start)

    def _carry_out(self, visit: Callable[[int, State], None], start: Streams) -> None:
        self.shelf = self.store.shelf(self.x_T, lambda: self.plan.nodes)
        try:
            with (
                torch.no_grad(),  # once for all steps; those that are recorded turn it off
                autocast_as(self.autocast),
                uncached_parametrizations(),
                self.log.showing("forward", self.plan.num_steps),
            ):
                self._forward(visit, start)
            self.shelf.settle()
        except BaseException:
            self.let_go()
            raise
        if self.first:
            self._forget_unneeded()

    def _forward(self, visit: Callable[[int, State], None], start: Streams) -> None:
        state, self.random = self.x_T, [start]
        # Where the comparison is not to the bit, kept states are brought back for it.
        in_sight = self.shelf.in_sight or not self.exact
        seen = {a.index for a in self.plan.forward if isinstance(a, Keep) and in_sight}
        again = {a.index for a in self.plan.backward if isinstance(a, (Advance, Record))}
        for action in self.plan.forward:
            i = action.index
            if isinstance(action, Keep):
                self.nodes[i] = self.shelf.put(i, state)
                continue
            began = self.log.now()
            self.log.saw(i, state)
            state = self._run_first(action, state)
            self.log.ran("forward", i, began)
            self.random.append(self._streams_after(i))
            if i in again and i + 1 not in seen:
                self.note(i + 1, state)
            visit(i + 1, state)

    def _streams_after(self, i: int) -> Streams:
        """Return where the streams stand after step i, the step before's object if not moved."""
        before, closely = self.random[i], self.streams.closely
        if closely or i > 0:
            return self.streams.state(before)
        self.streams.closely = True
        after = self.streams.state(before)
        self.streams.closely = not before.same_on_host(after)  # note [Host streams], 2
        return after

    def _run_first(self, action: Action, state: State) -> State:
        """Run a step as planned; if memory runs out, let all kept graphs go and run it without."""
        buffers = [buffer.clone() for buffer in self.steps.buffers] if self.graphs else []
        try:
            return self._run_as_planned(action, state)
        except Exception as error:
            if not self.droppable(error, action.index, self.nodes):
                raise
        self.drop_graphs(action.index)
        self.streams.set(self.random[-1])
        put_back(self.steps.buffers, buffers)
        return self._run_as_planned(Advance(action.index), state)

    def _run_as_planned(self, action: Action, state: State) -> State:
        i = action.index
        if isinstance(action, Record):
            recorded = self.graphs[i] = self.steps.record(i, state, self.wanted(i, state))
            state = recorded.leaving.detached()
            if self._leads_nowhere(i) and not any(map(wants_gradient, recorded.leaving.leaves)):
                self.first = i + 1
            return state
        if not self.passes(i):
            self.first += i == self.first
            return self.steps.advance(i, state)
        if self._leads_nowhere(i):
            state, needed = self.steps.tried(i, state)
            self.first += not needed
            return state
        return self.steps.advance(i, state)

    def _leads_nowhere(self, i: int) -> bool:
        """Return whether nothing before step i needs a gradient, as far as is known."""
        return i == self.first and not self._from_start

    @property
    def _from_start(self) -> bool:
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

    def _forget_unneeded(self) -> None:
        loaded = {a.index for a in self.backward_actions() if isinstance(a, Load)}
        for i in [i for i in self.nodes if i < self.first and i not in loaded]:
            del self.nodes[i]

    # The backward pass

    def let_go(self) -> None:
        """Free what is kept, and the store's room for it."""
        for kept in (self.nodes, self.graphs, self.digests, self.samples):
            kept.clear()
        self.shelf.close()

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Put in force what steps saw in the forward pass, and leave no trace."""
        with ExitStack() as stack:
            if self._draws:
                stack.enter_context(undisturbed(self.streams))
            stack.enter_context(in_modes(self.modes))
            stack.enter_context(unchanged(self.steps.buffers))
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
    def _draws(self) -> bool:
        return any(a is not b for a, b in zip(self.random, self.random[1:], strict=False))

    def plain_loop(self, inputs: list[Tensor] | None = None) -> tuple[list[State], list[Tensor]]:
        """Run all steps with one graph through all of them.

        Args:
            inputs: What to run them on, in place of leaves with the values of ``inputs``.

        Returns:
            The states, x_T first, and the tensors that gradients can be taken for.
        """
        if self._draws:
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

    # Both

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
        needed = self.passes(i - 1) and (i > self.first or self._from_start)
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
