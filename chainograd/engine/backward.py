"""Carries out the backward half of a plan: runs steps again, sends cotangents back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from chainograd.engine.accumulate import GradAccumulator
from chainograd.engine.run import Run
from chainograd.engine.step import ReplayHooks, StepGraph, StepResult, refuse_unknown_leaves
from chainograd.engine.uses import Apart, taken_apart
from chainograd.errors import ChainError, ReplayError
from chainograd.plans.plan import RUNS, Action, Advance, Backprop, Drop, Keep, Load, Record
from chainograd.report.log import has_numbers
from chainograd.state import Cotangents, State, versions, wants_gradient
from chainograd.storage.store import DeviceState, StoredState
from chainograd.tensors.parts import is_plain
from chainograd.torch_internals import pytree

First = Callable[[], Sequence[Any]] | None  # brings the leaves of a state as it was first


def run_backward(run: Run, given: Cotangents, *, keep: bool) -> list[Tensor | None]:
    """Carry out the backward actions of a run's plan.

    Args:
        run: What the forward pass left.
        given: Cotangents of the result, by the leaf's place.
        keep: Whether the nodes must be there for another backward pass.

    Returns:
        The gradients of the run's ``inputs``.
    """
    sweep = BackwardPass(run, keep=keep)
    try:
        with run.log.showing("backward", sweep.evaluations), run.steps.autocast.off():
            sweep.begin_at(run.plan.num_steps, given)
            for i in reversed(range(run.first, run.plan.num_steps)):
                sweep.pass_step(i)
                sweep.arrive(i)
            sweep.settle()
    finally:
        sweep.end()
    of_x_T = map(sweep.cotangents.get, run.asked_of_x_T)
    return [*of_x_T, *(sweep.accumulator.values[at] for at in run.asked)]


class BackwardPass:
    """One backward pass: the cotangent on its way from the result to x_T.

    Attributes:
        run: What the forward pass left.
        keep: Whether the nodes must be there for another backward pass.
        nodes: States that are there now.
        cotangents: Those of the state that the pass has come to, by the leaf's place.
        apart: Those of them that are not added up, by groups.
        accumulator: Gradients so far of what the steps share.
        numbers: Whether cotangents have norms.
    """

    def __init__(self, run: Run, *, keep: bool) -> None:
        self.run, self.keep = run, keep
        run.elsewhere = run.context.may_differ_here()
        run.steps.note_backward()
        self.nodes: dict[int, StoredState] = dict(run.nodes) if keep else run.nodes
        self.graphs: dict[int, StepGraph] = run.graphs
        self.cotangents: Cotangents = {}
        self.apart: list[list[Tensor]] = []
        self.entering: list[Any] = []  # the state's leaves in its step, as far as these are alive
        self.accumulator = GradAccumulator(len(run.steps.shared))
        self.numbers = False
        self.actions = run.backward_actions()
        self.position, self.state = run.reached
        self.at = run.left  # the index of the state that the pass has come to
        self.runs = {a.index: p for p, a in enumerate(self.actions) if type(a) in RUNS}
        self.evaluations = sum(p >= self.position for p in self.runs.values())
        self.coming: Iterator[int] | None = None  # nodes that will be loaded

    def begin_at(self, i: int, given: Cotangents) -> None:
        """Go on with the cotangents of state i, and with no step behind it."""
        if self.coming is None:
            loads = (a.index for a in self.actions[self.position :] if type(a) is Load)
            self.coming = iter([j for j in loads if j < i])
            self.prefetch_next()
        while self.at > i:
            action = self.next_action()
            if type(action) is Backprop:
                self.at = action.index
                if not self.keep:
                    self.graphs.pop(action.index, None)
            elif action.index < i or type(action) is Drop:
                self.carry_out(action)
        self.cotangents = given
        self.numbers = all(map(has_numbers, given.values()))

    def pass_step(self, i: int, groups: Apart = ()) -> None:
        """Send the cotangents through step i; those of ``groups`` of leaves are left apart."""
        self.entering = []
        while self.at > i:
            action = self.next_action()
            if type(action) is not Backprop:
                self.carry_out(action)
                continue
            self.at = action.index
            if self.cotangents:
                self.backprop(action.index, groups)
            elif not self.keep:
                self.graphs.pop(action.index, None)

    def next_action(self) -> Action:
        """Return the action that is to be carried out now."""
        self.position += 1
        return self.actions[self.position - 1]

    def carry_out(self, action: Action) -> None:
        """Carry out an action other than to send the cotangents back."""
        i, state = action.index, self.state
        match action:  # the commonest first
            case Load():
                self.state = self.nodes[i].load()
                self.prefetch_next()
            case Record():
                assert state is not None, "a plan loads a state before it runs a step"
                if self.cotangents:  # else no loss sees what this step gives
                    self.graphs[i] = self.record(i, state)
            case Drop():
                self.drop(i, again=self.runs.get(i - 1, -1) >= self.position)
            case Advance():
                assert state is not None
                self.state = self.advance(i, state)
            case Keep():
                assert state is not None
                self.nodes[i] = self.run.storage.put(i, state)

    def arrive(self, i: int) -> None:
        """Turn to state i, whose cotangents are whole now: change them if asked, and note them."""
        if self.run.transform is not None and self.cotangents:
            self.cotangents = self.transformed(i, self.cotangents)
        if self.numbers:
            self.run.log.sent(i, self.cotangents)

    def end(self) -> None:
        """Leave the run as other backward passes are to find it."""
        with self.run.steps.autocast.off():
            self.run.log.settle()
        if self.keep:
            return
        run = self.run
        run.release()
        if not run.twice:
            run.random.clear()
            run.x_T = run.x_T._replace(leaves=())

    def release(self) -> None:
        """Forget all that a backward pass holds of its own."""
        self.nodes, self.state, self.cotangents, self.apart = {}, None, {}, []
        self.accumulator = GradAccumulator(0)

    def prefetch_next(self) -> None:
        """Begin to bring back the node that is loaded next, if it is kept by now."""
        i = None if self.coming is None else next(self.coming, None)
        if i in self.nodes:
            self.nodes[i].prefetch()

    def drop(self, i: int, *, again: bool) -> None:
        """Forget a node; what it is compared with if its step runs again is noted first."""
        dropped = self.nodes.pop(i, None)
        at_hand = isinstance(dropped, DeviceState) or not self.run.verifier.exact
        if again and dropped is not None and at_hand:
            self.run.verifier.saw(i, dropped.load().leaves)

    def advance(self, i: int, state: State) -> State:
        """Run a step again and let its graph go at once."""
        run, began = self.run, self.run.log.now()
        around = run.again(i)
        with around:
            if run.passes(i):
                wanted, mark = run.wanted[i], run.mark(i)
                result = run.steps.advance(i, state, wanted, mark, around.begin_again)
            else:
                result = StepResult(run.steps.unrecorded(i, state), [], set(), None, {}, {})
        self.compare(i, self.first(self.nodes.get(i + 1)), result)
        run.log.ran("rerun", i, began)
        return result.leaving

    def record(self, i: int, state: State) -> StepGraph:
        """Run a step again with its graph, if need be after the kept graphs have made room."""
        began, recorded = self.run.log.now(), None
        try:
            recorded = self.recorded(i, state)
        except Exception as error:
            if not self.recoverable(i, error):
                raise
        if recorded is None:  # outside of `except`, which holds what the failed run left
            self.run.drop_graphs(i)
            recorded = self.recorded(i, state)
        self.run.log.ran("rerun", i, began)
        return recorded

    def recorded(self, i: int, state: State) -> StepGraph:
        """Run a step again with its graph."""
        run = self.run
        first = self.first(self.nodes.get(i + 1))  # which may be dropped before it is asked for
        rerun = ReplayHooks(run.again(i), partial(self.compare, i, first), run.mark(i))
        return run.steps.again(i, state, run.wanted[i], rerun)

    def recoverable(self, i: int, error: Exception) -> bool:
        """Return whether what step i failed in can be done again without the kept graphs."""
        return not self.run.steps.trains_shards and self.run.droppable(error, i, self.nodes)

    def compare(self, i: int, first: First, result: StepResult) -> None:
        """Check that a step gave what it gave the first time, and used what it used then."""
        steps, verifier = self.run.steps, self.run.verifier
        if steps.changed:
            # What is used with a gradient shows in the graph. What has none shows in the values,
            # if they are compared to the bit.
            inside, certain = steps.outside(result.used), verifier.exact
            steps.refuse_changes(i, lambda t: id(t) in inside or not (certain or t.requires_grad))
        try:
            verifier.same(i, result.leaving.leaves, first)
            verifier.same_graph(i, result.used, result.signature)
            if verifier.verify != "off":
                self.run.unlisted_generators.ran_again(i)
        except ReplayError:
            steps.refuse_changes(i, lambda t: True)
            raise

    def first(self, node: StoredState | None) -> First:
        """Return what brings the state that a node keeps, if that is no more than a look."""
        exact = self.run.verifier.exact
        if node is None or (exact and not isinstance(node, DeviceState)):
            return None
        return lambda: node.load().leaves

    def settle(self) -> None:
        """Ask whether all steps gave what they gave the first time, where that is open."""
        try:
            self.run.verifier.settle()
        except ReplayError:
            self.run.steps.refuse_changes(self.run.first, lambda t: True)
            raise

    def backprop(self, i: int, groups: Apart) -> None:
        """Send the cotangent through step i, from the state after it to the one before."""
        if i not in self.graphs:  # dropped for want of memory, or freed by an earlier backward pass
            self.graphs[i] = self.restored(i)
        recorded = self.graphs.pop(i)
        if self.keep and all(j > i for j in self.run.nodes):
            # Another backward pass will run this step again. No node leads to it, for it was
            # recorded in the forward pass.
            self.run.nodes[i] = self.run.storage.put(i, recorded.entering.detached())
        began = self.run.log.now()
        self.accumulator.begin()
        before = None
        try:
            before = self.through(recorded, groups)
        except Exception as error:
            if not self.recoverable(i, error):
                raise
        if before is None:  # a graph that memory ran out in is half freed
            self.run.drop_graphs(i)
            del recorded
            recorded = self.restored(i)
            before = self.through(recorded, groups)
        unknown_leaves = recorded.unknown_leaves
        del recorded
        refuse_unknown_leaves(unknown_leaves)
        self.cotangents = before
        self.run.log.ran("backward", i, began)

    def show(self, whole: Cotangents) -> None:
        """Let a step that keeps the state it was given see the state's whole gradient."""
        for place, g in whole.items():
            leaf = self.entering[place]() if place < len(self.entering) else None
            if leaf is not None and is_plain(g):
                leaf.grad = g

    def through(self, recorded: StepGraph, groups: Apart) -> Cotangents:
        """Send the cotangent through a recorded step."""
        self.apart = taken_apart(recorded.entered, groups)
        self.entering = [weakref.ref(leaf) if wants_gradient(leaf) else _nothing
                         for leaf in recorded.entering.leaves]  # fmt: skip
        return self.run.steps.backprop(recorded, self.cotangents, {}, self.accumulator)

    def transformed(self, i: int, before: Cotangents) -> Cotangents:
        """Return cotangents of state i as the caller's transform changes them."""
        assert self.run.transform is not None
        spec = self.run.specs[i]
        listed = [before.get(place) for place in range(spec.num_leaves)]
        tree, counted = pytree.tree_unflatten(listed, spec), versions(listed)
        with self.run.steps.autocast.on():
            changed = pytree.tree_leaves(self.run.transform(i, tree), is_leaf=_none)
        if versions(listed) != counted:
            raise ChainError(
                f"`grad_transform` changed the cotangent of state {i} in place. It may be the very "
                "tensor that is the gradient of a parameter: return a new one, `g * 0.5` instead "
                "of `g.mul_(0.5)`."
            )
        if [g is None for g in changed] != [g is None for g in listed]:
            raise ChainError(
                f"`grad_transform` gave {_count(changed)} of step {i}, where it was handed "
                f"{_count(listed)}. Return `g` itself to leave it as it is, or zeros to stop it."
            )
        for g, handed in zip(changed, listed, strict=True):
            if g is not None and _kind(g) != _kind(handed):
                raise ChainError(
                    f"`grad_transform` gave {_kind(g)} of step {i}, where it was handed "
                    f"{_kind(handed)}. What it returns must be shaped like what it is handed."
                )
        return {place: g for place, g in enumerate(changed) if g is not None}

    def restored(self, i: int) -> StepGraph:
        """Record step i again from the nearest node before it."""
        start = max(j for j in self.nodes if j <= i)
        state = self.nodes[start].load()
        for j in range(start, i):
            state = self.advance(j, state)
        return self.record(i, state)


def _count(listed: list[Any]) -> str:
    given = sum(g is not None for g in listed)
    return f"{given} cotangent{'' if given == 1 else 's'}"


def _kind(g: Any) -> str:
    if not isinstance(g, Tensor):
        return f"a {type(g).__name__} for a cotangent"
    return f"a {'complex' if g.is_complex() else 'real'} cotangent of shape {tuple(g.shape)}"


def _nothing() -> None:
    return None


def _none(thing: Any) -> bool:
    return thing is None
