"""Carries out the backward half of a plan: runs steps again, sends cotangents back."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from chainograd.engine.accumulate import GradAccumulator
from chainograd.engine.reruns import Reruns
from chainograd.engine.run import Run
from chainograd.engine.step_graph import AbstractStepGraph
from chainograd.engine.transform import transformed
from chainograd.engine.unknown_leaves import refuse_unknown_leaves
from chainograd.engine.uses import Apart, taken_apart
from chainograd.engine.vjp import Vjp
from chainograd.plans.plan import RUNS, Action, Advance, Backprop, Drop, Keep, Load, Record
from chainograd.report.log import has_numbers
from chainograd.state import Cotangents, State, wants_gradient
from chainograd.storage.call_storage import StoredState
from chainograd.tensors.parts import is_plain


def run_backward(run: Run, given: Cotangents, *, keep: bool) -> list[Tensor | None]:
    """Carry out the backward actions of a run's plan.

    Args:
        run: What the forward pass left.
        given: Cotangents of the result, by the leaf's place.
        keep: Whether the nodes must be there for another backward pass.

    Returns:
        The gradients of the run's inputs.
    """
    backward = BackwardPass(run, keep=keep)
    try:
        with run.log.showing("backward", backward.evaluations), backward.vjp.autocast.off():
            backward.begin_at(run.plan.num_steps, given)
            for i in reversed(range(run.first_pass.first, run.plan.num_steps)):
                backward.pass_step(i)
                backward.arrive(i)
            run.comparison.settle(run.first_pass.first)
    finally:
        backward.end()
    of_x_T = map(backward.cotangents.get, run.inputs.of_x_T)
    return [*of_x_T, *(backward.accumulator.values[at] for at in run.inputs.of_steps)]


class BackwardPass:
    """One backward pass: the cotangent on its way from the result to x_T.

    Attributes:
        run: What the forward pass left.
        keep: Whether the nodes must be there for another backward pass.
        vjp: Computes the gradients of steps.
        nodes: States that are there now.
        graphs: Graphs of steps that are there now.
        reruns: Runs steps again.
        cotangents: The cotangents of the state that the pass has come to, by the leaf's place.
        apart: Cotangents that are not added up, by groups of leaves: note [Use by use].
        accumulator: Gradients so far of what the steps share.
        numbers: Whether cotangents have norms.
        state: The state that the last action left.
        position: The next action.
        at: The index of the state that the pass has come to.
    """

    def __init__(self, run: Run, *, keep: bool) -> None:
        self.run, self.keep = run, keep
        run.surroundings.elsewhere = run.surroundings.context.may_differ_here()
        self.vjp = Vjp(run.shared)
        memory = run.memory
        for each in memory.attention.values():
            each.begun = True
        self.nodes: dict[int, StoredState] = dict(memory.nodes) if keep else memory.nodes
        self.graphs: dict[int, AbstractStepGraph] = memory.graphs
        self.reruns = Reruns(run, self.nodes)
        self.cotangents: Cotangents = {}
        self.apart: list[list[Tensor]] = []
        self.entering: list[Any] = []  # the state's leaves in its step, as far as these are alive
        self.accumulator = GradAccumulator(len(run.shared.inside))
        self.numbers = False
        self.actions = run.backward_actions()
        self.position, self.state = memory.reached
        self.at = memory.left
        self.runs = {a.index: p for p, a in enumerate(self.actions) if type(a) in RUNS}
        self.evaluations = sum(p >= self.position for p in self.runs.values())
        self.coming: Iterator[int] | None = None  # nodes that will be loaded

    def begin_at(self, i: int, given: Cotangents) -> None:
        """Go on with the cotangents of state i, and with no step behind it."""
        if self.coming is None:
            loads = (a.index for a in self.actions[self.position :] if type(a) is Load)
            self.coming = iter([j for j in loads if j < i])
            self.prefetch_next()
        self.cotangents = {}
        while self.at > i:
            action = self.actions[self.position]
            if action.index < i or type(action) in (Drop, Backprop):
                self.carry_out(action)
            else:
                self.position += 1
        self.cotangents = given
        self.numbers = all(map(has_numbers, given.values()))

    def pass_step(self, i: int, groups: Apart = ()) -> None:
        """Send the cotangents through step i; cotangents of ``groups`` of leaves stay apart."""
        self.entering = []
        while self.at > i:
            self.carry_out(self.actions[self.position], groups)

    def carry_out(self, action: Action, groups: Apart = ()) -> None:
        """Carry out the next action."""
        self.position += 1
        match action:  # the commonest first
            case Load(i):
                self.state = self.nodes[i].load()
                self.prefetch_next()
            case Record(i):
                if self.cotangents:  # else no loss sees what this step returns
                    self.graphs[i] = self.reruns.record(i, self.loaded)
            case Backprop(i):
                self.at = i
                if self.cotangents:
                    self.backprop(i, groups)
                elif not self.keep:
                    self.graphs.pop(i, None)
            case Drop(i):
                self.drop(i, again=self.runs.get(i - 1, -1) >= self.position)
            case Advance(i):
                self.state = self.reruns.advance(i, self.loaded)
            case Keep(i):
                self.nodes[i] = self.run.memory.storage.put(i, self.loaded)

    @property
    def loaded(self) -> State:
        """The state that the last action left."""
        assert self.state is not None, "a plan loads a state before it runs a step"
        return self.state

    def arrive(self, i: int) -> None:
        """Turn to state i, whose cotangents are whole now: change them if asked, and note them."""
        transform = self.run.options.transform
        if transform is not None and self.cotangents:
            spec = self.run.first_pass.specs[i]
            with self.vjp.autocast.on():
                self.cotangents = transformed(transform, i, self.cotangents, spec)
        if self.numbers:
            self.run.log.sent(i, self.cotangents)

    def end(self) -> None:
        """Leave the run as other backward passes are to find it."""
        with self.vjp.autocast.off():
            self.run.log.settle()
        if self.keep:
            return
        run = self.run
        run.release()
        if not run.twice:
            run.surroundings.random.clear()
            run.x_T = run.x_T._replace(leaves=())

    def release(self) -> None:
        """Forget all that a backward pass holds of its own."""
        self.nodes, self.state, self.cotangents, self.apart = {}, None, {}, []
        self.reruns = Reruns(self.run, self.nodes)
        self.accumulator = GradAccumulator(0)

    def prefetch_next(self) -> None:
        """Begin to bring back the node that is loaded next, if it is kept by now."""
        i = None if self.coming is None else next(self.coming, None)
        if i in self.nodes:
            self.nodes[i].prefetch()

    def drop(self, i: int, *, again: bool) -> None:
        """Forget a node; what it is compared with if its step runs again is noted first."""
        node = self.nodes.pop(i, None)
        if again and node is not None:
            self.run.comparison.dropped(i, node)

    def backprop(self, i: int, groups: Apart) -> None:
        """Send the cotangent through step i, from the state after it to the one before."""
        memory, began = self.run.memory, self.run.log.now()
        if i not in self.graphs:  # dropped for want of memory, or freed by an earlier backward pass
            self.graphs[i] = self.reruns.restored(i)
            began = self.run.log.now()
        graph, before = self.graphs.pop(i), None
        if self.keep and all(j > i for j in memory.nodes):
            # Another backward pass will run this step again. No node leads to it, for it was
            # recorded in the forward pass.
            memory.keep(i, graph.entering.detached())
        self.accumulator.begin()
        try:
            before = self.through(graph, groups)
        except Exception as error:
            if not self.reruns.recoverable(i, error):
                raise
        if before is None:  # a graph that memory ran out in is half freed
            memory.drop_graphs(i)
            del graph
            graph = self.reruns.restored(i)
            before = self.through(graph, groups)
        unknown_leaves = graph.unknown_leaves
        del graph
        if unknown_leaves:
            refuse_unknown_leaves(unknown_leaves)
        self.cotangents = before
        self.run.log.ran("backward", i, began)

    def fill_grad(self, whole: Cotangents) -> None:
        """Let a step that keeps the state it was given see the state's whole gradient."""
        for place, g in whole.items():
            leaf = self.entering[place]() if place < len(self.entering) else None
            if leaf is not None and is_plain(g):
                leaf.grad = g

    def through(self, graph: AbstractStepGraph, groups: Apart) -> Cotangents:
        """Send the cotangent through the graph of a step."""
        self.apart = taken_apart(graph.entered, groups) if groups else []
        self.entering = [weakref.ref(leaf) if wants_gradient(leaf) else _nothing
                         for leaf in graph.entering.leaves]  # fmt: skip
        return graph.send_back(self.cotangents, self.accumulator, self.vjp)


def _nothing() -> None:
    return None
