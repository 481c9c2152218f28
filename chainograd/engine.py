"""Carries a plan out: keeps states, runs steps, sends cotangents back. One action at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from chainograd.plan import Action, Advance, Backprop, Drop, Keep, Load, Plan, Record
from chainograd.planners import restricted
from chainograd.replay import (
    Autocast,
    Digest,
    RandomStreams,
    Streams,
    Verify,
    autocast_as,
    compare,
    compare_digest,
    compare_rounded,
    digest,
    unchanged,
    undisturbed,
)
from chainograd.reporting import Log
from chainograd.steps import (
    Cotangents,
    Recorded,
    Rerun,
    State,
    Steps,
    Sums,
    differentiable,
    wants_gradient,
)
from chainograd.stores import DeviceNode, Node, Shelf, Store

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
        transform: Applied to the cotangent of each node.
        grad_steps: Steps that the gradient may pass; None is all of them.
        store: Where nodes live.
        progress: Whether to show a bar.
        nodes: States that are kept, by the index of the step they enter.
        graphs: Steps that are recorded.
        spent: Whether a backward pass has freed the nodes.
        twice: Whether a backward pass is itself to be differentiated, from x_T on.
        first: The first step that a gradient needs; those before it are never run again.
        inputs: Tensors outside that gradients are returned for: of x_T, then of the steps.
    """

    steps: Steps
    plan: Plan
    x_T: State
    streams: RandomStreams
    verify: Verify
    autocast: tuple[Autocast, ...]
    transform: Transform | None = None
    grad_steps: frozenset[int] | None = None
    store: Store = field(default_factory=Store)
    progress: bool = False
    nodes: dict[int, Node] = field(default_factory=dict)
    graphs: dict[int, Recorded] = field(default_factory=dict)
    digests: dict[int, Digest] = field(default_factory=dict)
    random: list[Streams] = field(default_factory=list)
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
        self.adopt(self.plan)

    def adopt(self, plan: Plan) -> None:
        """Go by a plan, as far as the steps that the gradient may pass need it."""
        self.plan = plan if self.grad_steps is None else restricted(plan, self.grad_steps)

    # The forward pass

    def forward(self, visit: Callable[[int, State], None]) -> None:
        """Carry out the forward actions; ``visit`` is shown every state that a step gives."""
        self.shelf = self.store.shelf(self.x_T, lambda: self.plan.nodes)
        try:
            with autocast_as(self.autocast), self.log.showing("forward", self.plan.num_steps):
                self._forward(visit)
            self.shelf.settle()
        except BaseException:
            self._let_go()
            raise
        if self.first:
            self._forget_unneeded()

    def _forward(self, visit: Callable[[int, State], None]) -> None:
        state, self.random = self.x_T, [self.streams.state()]
        seen = {a.index for a in self.plan.forward if isinstance(a, Keep) and self.shelf.in_sight}
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
            self.random.append(self.streams.state(self.random[-1]))
            if i in again and i + 1 not in seen:
                self.note(i + 1, state)
            visit(i + 1, state)

    def _run_first(self, action: Action, state: State) -> State:
        i = action.index
        if isinstance(action, Record):
            recorded = self._record_within_memory(i, state)
            if recorded is not None:
                self.graphs[i] = recorded
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

    def _record_within_memory(self, i: int, state: State) -> Recorded | None:
        """Record a step of the forward pass; if memory runs out, let all kept graphs go."""
        try:
            return self.steps.record(i, state, self.wanted(i, state))
        except Exception as error:
            kept_nodes = all(j in self.nodes for j in (*self.graphs, i))
            if not (_out_of_memory(error) and self.graphs and kept_nodes):
                raise
        count = len(self.graphs)
        self.graphs.clear()
        self.streams.set(self.random[-1])
        warnings.warn(
            f"Memory ran out at step {i} with {count} graphs kept. They are dropped, and their "
            "steps will be run again in the backward pass. A smaller `plan` avoids this.",
            stacklevel=2,
        )
        return None

    def _forget_unneeded(self) -> None:
        loaded = {a.index for a in self._backward_actions() if isinstance(a, Load)}
        for i in [i for i in self.nodes if i < self.first and i not in loaded]:
            del self.nodes[i]

    # The backward pass

    def backward(self, given: dict[int, Cotangents], *, keep: bool) -> Sums:
        """Carry out the backward actions.

        Args:
            given: Cotangents that states have from outside, by the state's index (M is the
                result's) and the leaf's place.
            keep: Whether the nodes must be there for another backward pass.

        Returns:
            The gradients of ``inputs``.
        """
        nodes = dict(self.nodes) if keep else self.nodes
        self.spent = not keep
        try:
            actions = self._backward_actions()
            runs = sum(isinstance(action, (Advance, Record)) for action in actions)
            with self.surroundings(), self.log.showing("backward", runs):
                before, sums = Sweep(self, nodes, given).run(actions)
        finally:
            if not keep:
                self._let_go()
                if not self.twice:
                    self.random.clear()
                    self.x_T = self.x_T._replace(leaves=())
        return [before.get(place) for place, wanted in enumerate(self.x_T_wanted) if wanted] + sums

    def _let_go(self) -> None:
        for kept in (self.nodes, self.graphs, self.digests):
            kept.clear()
        self.shelf.close()

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Put in force what steps saw in the forward pass, and leave no trace."""
        with ExitStack() as stack:
            if self._draws:
                stack.enter_context(undisturbed(self.streams))
            stack.enter_context(unchanged(self.steps.buffers))
            stack.enter_context(autocast_as(self.autocast))
            yield

    def _backward_actions(self) -> list[Action]:
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
        """Remember a state's digest: what a later run of step i - 1 is compared with."""
        if self.verify == "exact" and self.store.dtype is None:
            self.digests[i] = digest(state.leaves)


@dataclass(slots=True, eq=False)
class Sweep:
    """One backward pass: the cotangent on its way from the result to x_T.

    Attributes:
        tape: What the forward pass left.
        nodes: States that are there now.
        given: Cotangents that states have from outside, by the state's index and the leaf's place.
    """

    tape: Tape
    nodes: dict[int, Node]
    given: dict[int, Cotangents]
    graphs: dict[int, Recorded] = field(init=False)
    cotangents: Cotangents = field(init=False)
    sums: Sums = field(init=False)

    def __post_init__(self) -> None:
        self.graphs = self.tape.graphs
        self.cotangents = self.given.get(self.tape.plan.num_steps, {})
        self.sums = [None] * len(self.tape.steps.shared)

    def run(self, actions: list[Action]) -> tuple[Cotangents, Sums]:
        """Carry the actions out; return the cotangents of x_T and the gradients of the rest."""
        state: State | None = None
        runs = {a.index: p for p, a in enumerate(actions) if isinstance(a, (Advance, Record))}
        coming = iter([a.index for a in actions if isinstance(a, Load)])
        self.prefetch(next(coming, None))
        for position, action in enumerate(actions):
            i = action.index
            match action:
                case Load():
                    state = self.nodes[i].load()
                    self.prefetch(next(coming, None))
                case Advance():
                    assert state is not None, "a plan loads a state before it runs a step"
                    state = self.advance(i, state)
                case Keep():
                    assert state is not None
                    self.nodes[i] = self.tape.shelf.put(i, state)
                case Drop():
                    self.drop(i, again=runs.get(i - 1, -1) > position)
                case Record():
                    assert state is not None
                    if self.cotangents:  # else no loss sees what this step gives
                        self.graphs[i] = self.record(i, state)
                case Backprop():
                    if self.cotangents:
                        self.backprop(i)
                    else:
                        self.graphs.pop(i, None)
                        self.cotangents = self.given.get(i, {})
        return self.cotangents, self.sums

    def prefetch(self, i: int | None) -> None:
        """Begin to bring a node back, if it is kept by now."""
        if i in self.nodes:
            self.nodes[i].prefetch()

    def drop(self, i: int, *, again: bool) -> None:
        """Forget a node; what it is compared with if its step runs again is noted first."""
        dropped = self.nodes.pop(i, None)
        if again and isinstance(dropped, DeviceNode):
            self.tape.note(i, dropped.state)

    def advance(self, i: int, state: State) -> State:
        """Run a step again without a graph."""
        self.tape.steps.refuse_changes(i)
        began = self.tape.log.now()
        self.tape.rewind(i)
        after = self.tape.steps.advance(i, state)
        self.compare(i, after, self.nodes.get(i + 1))
        self.tape.log.ran("rerun", i, began)
        return after

    def record(self, i: int, state: State) -> Recorded:
        """Run a step again with its graph."""
        self.tape.steps.refuse_changes(i)
        first = self.nodes.get(i + 1)
        rerun = Rerun(partial(self.tape.rewind, i), lambda after: self.compare(i, after, first))
        began = self.tape.log.now()
        recorded = self.tape.steps.record(i, state, self.tape.wanted(i, state), rerun)
        self.tape.log.ran("rerun", i, began)
        return recorded

    def compare(self, i: int, after: State, node: Node | None) -> None:
        """Check that a step gave what it gave the first time, by its node or by its digest."""
        verify, rounding = self.tape.verify, self.tape.store.dtype
        if rounding is not None:
            if node is not None and verify != "off":
                compare_rounded(i, node.load().leaves, after.leaves, rounding)
        elif node is not None and (verify == "close" or isinstance(node, DeviceNode)):
            compare(i, node.load().leaves, after.detached().leaves, verify)
        elif i + 1 in self.tape.digests:
            compare_digest(i, self.tape.digests[i + 1], after.leaves)

    def backprop(self, i: int) -> None:
        """Send the cotangent through step i, from the state after it to the one before."""
        if i not in self.graphs:  # dropped for want of memory, or freed by an earlier backward pass
            self.graphs[i] = self.restored(i)
        recorded = self.graphs.pop(i)
        began = self.tape.log.now()
        before, self.sums = self.tape.steps.backprop(
            recorded, self.cotangents, self.given.get(i, {}), self.sums
        )
        if self.tape.transform is not None and before:
            before = self.transformed(i, before, recorded.entering)
        self.cotangents = before
        self.tape.log.ran("backward", i, began)
        self.tape.log.sent(i, before)

    def transformed(self, i: int, before: Cotangents, entering: State) -> Cotangents:
        """Return cotangents as the caller's transform changes them."""
        assert self.tape.transform is not None
        listed = [before.get(place) for place in range(len(entering.leaves))]
        tree = pytree.tree_unflatten(listed, entering.spec)
        changed = pytree.tree_leaves(self.tape.transform(i, tree), is_leaf=_none)
        return {place: g for place, g in enumerate(changed) if g is not None}

    def restored(self, i: int) -> Recorded:
        """Record step i again from the nearest node before it."""
        start = max(j for j in self.nodes if j <= i)
        state = self.nodes[start].load()
        for j in range(start, i):
            state = self.advance(j, state)
        return self.record(i, state)


def _none(thing: Any) -> bool:
    return thing is None


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )
