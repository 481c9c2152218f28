"""One step at a time: run it, record it, send cotangents back through it."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainograd.captured.fsdp import gathered, gradients_by_accumulation, is_shard, trainable
from chainograd.captured.stand_ins import StandIns
from chainograd.engine.accumulate import GradAccumulator, Uses
from chainograd.engine.graph import (
    Guard,
    Mark,
    leaves_used,
    needs_saved,
    nothing_saved,
)
from chainograd.engine.hooks import without_hooks
from chainograd.errors import CapturedTensorError, ChainError, ChangedTensorError
from chainograd.replay.autocast import OwnAutocast
from chainograd.replay.signature import Signature, signature
from chainograd.state import (
    NO_ARGUMENTS,
    Cotangents,
    State,
    detached_leaf,
    differentiable,
    refuse_hidden,
    same_leaves,
    versions,
    wants_gradient,
)
from chainograd.tensors.parts import is_plain
from chainograd.torch_internals import pytree
from chainograd.torch_internals.autograd import hooks_of, run_backward, set_grad_enabled
from chainograd.torch_internals.tensors import version_or_zero


@dataclass(slots=True, eq=False)
class StepGraph:
    """A step's graph.

    Attributes:
        entering: Detached leaves that it begins with.
        leaving: The state that it ends with.
        uses: Where it uses what the steps share.
        signature: What it is like; None if that is not the same each time.
        entered: Where it uses the entering leaves, by their places.
        unknown_leaves: Leaves that the chain does not know. A step may make leaves of its own.
        guard: Refuses gradients that do not come from the chain, where the graph is kept a while.
    """

    entering: State
    leaving: State
    uses: Uses
    signature: Signature | None
    entered: Uses
    unknown_leaves: list[UnknownLeaf]
    guard: Guard | None = None


class UnknownLeaf(NamedTuple):
    """A leaf in a step's graph that the chain does not know: captured, or the step's own."""

    step: int
    shape: tuple[int, ...]
    leaf: weakref.ref[Tensor]


class StepResult(NamedTuple):
    """What is left of a step that ran for the first time.

    Attributes:
        leaving: The state that it gave, outside its graph.
        wanted: Which leaves of that state need a gradient.
        used: Places of the tensors that the steps share which are in its graph.
        signature: What that graph was like; None if there was none.
        entered: How often its graph uses the leaves of the state it was given, by their places.
        aliases: Leaves of that state, by their places, that are tensors from elsewhere.
    """

    leaving: State
    wanted: list[bool]
    used: set[int]
    signature: Signature | None
    entered: dict[int, int]
    aliases: dict[int, Alias]


class Alias(NamedTuple):
    """Where a tensor was met that a step gives: in the state it was given, or in what it gives.

    Attributes:
        entering: The former.
        place: The leaf's.
    """

    entering: bool
    place: int


def _aliases(entering: State, leaving: State) -> dict[int, Alias]:
    met = {id(t): Alias(True, at) for at, t in enumerate(entering.leaves) if wants_gradient(t)}
    aliases: dict[int, Alias] = {}
    for place, leaf in enumerate(leaving.leaves):
        if wants_gradient(leaf):
            alias = met.setdefault(id(leaf), Alias(False, place))
            if alias != Alias(False, place):
                aliases[place] = alias
    return aliases


class ReplayHooks(NamedTuple):
    """What goes with running a step again.

    Attributes:
        around: What it runs in; entered for each slice of a step that runs slice by slice.
        check: Looks at the outcome.
        mark: For the nodes of its graph.
    """

    around: AbstractContextManager[None]
    check: Callable[[StepResult], None]
    mark: Mark


class NeedsSavedError(Exception):
    """A step asked for what the graph of its first run did not save."""


_UNGUARDED = nullcontext()


def _with_stand_ins(
    swapped: dict[int, Tensor], step: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    with StandIns(swapped):
        return step(*args, **kwargs)


@dataclass(slots=True, eq=False)
class Steps:
    """The steps of one call of a chain, with all that they see besides the state.

    Attributes:
        step: The user's step.
        num_steps: M.
        arguments: Extra arguments and keyword arguments, flattened.
        captured: Tensors requiring a gradient that the step reaches by itself.
        buffers: Buffers of modules in training, which a rerun must leave as they are.
        recording: Makes the context that a step is recorded in.
        routes: Where the gradients of the captured tensors go, one each: to themselves, or inside
            a step of another chain to what stands in for them there.
        sharded: Modules that FSDP2 shards.
    """

    step: Callable[..., Any]
    num_steps: int
    arguments: State
    captured: list[Tensor]
    buffers: list[Tensor]
    routes: list[Tensor] = field(default_factory=list)
    sharded: list[Any] = field(default_factory=list)
    recording: Callable[[], AbstractContextManager[object]] = nullcontext
    inner_arguments: State = field(init=False)
    inner_captured: list[Tensor] = field(init=False)
    shared: list[Tensor] = field(init=False)  # the `inputs` as the steps see them
    known: dict[int, int] = field(init=False)  # their places, by their ids
    called: Callable[..., Any] = field(init=False)  # the step, on what stands in for others
    watched: list[Tensor] = field(init=False)  # what must not change before the backward pass
    versions: list[int] = field(init=False)  # how often it was changed by now
    counted: bool = True  # whether a graph has as many nodes each time: TorchScript optimises
    saves: bool = False  # whether graphs of first runs save what a step's own gradients need
    trains_shards: bool = field(init=False)
    grads: list[Any] = field(init=False)  # which gradients had been accumulated by now
    hooked: list[Tensor] = field(default_factory=list)  # captured tensors that have hooks
    autocast: OwnAutocast = field(init=False)  # where `backward()` was called
    nested: bool = field(init=False)  # whether arguments hold lists or dicts

    def __post_init__(self) -> None:
        args, kwargs = self.arguments.tree()
        self.nested = len(self.arguments.leaves) > 0 and not all(
            pytree.tree_structure(value).is_leaf() for value in (*args, *kwargs.values())
        )
        self.inner_arguments = self.arguments._replace(
            leaves=tuple(
                detached_leaf(leaf) if wants_gradient(leaf) else leaf
                for leaf in self.arguments.leaves
            )
        )
        self.routes = self.routes or self.captured
        # A leaf is used as it is: note [Stand-ins].
        self.trains_shards = any(map(trainable, self.sharded))
        self.inner_captured = [
            detached_leaf(tensor)
            if not tensor.is_leaf or (self.trains_shards and not is_shard(tensor))
            else tensor
            for tensor in self.routes
        ]
        self.watched = [*self.arguments.tensors, *self.captured]
        self.versions = versions(self.watched)
        self.autocast = OwnAutocast(())
        self.grads = [_of_grad(tensor) for tensor in self.inner_captured]
        self._note_shared()

    def _note_shared(self) -> None:
        """Note what follows from the inner tensors, once for all steps."""
        arguments = [leaf for leaf in self.inner_arguments.leaves if wants_gradient(leaf)]
        self.shared = arguments + self.inner_captured
        self.known = {id(tensor): at for at, tensor in enumerate(self.shared)}
        swapped = {
            id(outer): inner
            for outer, inner in zip(self.captured, self.inner_captured, strict=True)
            if outer is not inner
        }
        self.called = self.step
        if swapped:
            self.called = partial(_with_stand_ins, swapped, self.step)

    @property
    def inputs(self) -> list[Tensor]:
        """Tensors that gradients are returned for: of the arguments, and the captured ones."""
        return [leaf for leaf in self.arguments.leaves if wants_gradient(leaf)] + self.routes

    def forget_unused(self, used: set[int]) -> None:
        """Let go of captured tensors with a graph that no step uses: what is left of a call before.

        What stands in for them stays in their places, so that nothing holds their graphs.
        """
        count = len(self.shared) - len(self.captured)
        unused = [
            place
            for place, route in enumerate(self.routes)
            if not route.is_leaf and count + place not in used
        ]
        for place in unused:
            inner = self.inner_captured[place]
            self.watched[len(self.watched) - len(self.captured) + place] = inner
            self.captured[place] = self.routes[place] = inner
            self.grads[place] = _of_grad(inner)
        if unused:
            self._note_shared()

    def on(self, others: dict[int, Tensor]) -> Steps:
        """Return the same steps, run on other tensors at some places of what they share."""
        steps, shared = copy.copy(self), [others.get(k, t) for k, t in enumerate(self.shared)]
        coming = iter(shared)
        steps.inner_arguments = self.arguments._replace(
            leaves=tuple(next(coming) if wants_gradient(t) else t for t in self.arguments.leaves)
        )
        steps.inner_captured = list(coming)
        steps._note_shared()
        return steps

    def run(self, index: int, state: State) -> State:
        """Run one step, in the grad mode that is in force."""
        return self.call(index, state, self.inner_arguments)

    def call(self, index: int, state: State, arguments: State) -> State:
        """Call the user's step; the state it is given must survive it."""
        before = versions(state.leaves)
        torch.clear_autocast_cache()  # else a cast that a step made would serve the next one
        try:
            if arguments.spec is NO_ARGUMENTS.spec:
                args, kwargs = (), {}
                result = self.called(state.tree(), index)
            else:
                args, kwargs = arguments.tree()  # made anew: no step sees a container of another
                result = self.called(state.tree(), index, *args, **kwargs)
            after = State.of(result)
        except Exception as error:
            self._name(index, error)
            refused = _in_place(index, error)
            if refused is None:
                raise
            raise refused from error
        if result is None:
            raise ChainError(
                f"Step {index} returned None. A step returns the next state: end it with "
                "`return x`."
            )
        if not isinstance(result, Tensor):
            # An object that is only handed on holds nothing that a step computed.
            new = [leaf for leaf in after.leaves if all(leaf is not old for old in state.leaves)]
            refuse_hidden(new, differentiable, f"The state that step {index} gives")
        if before != versions(state.leaves):
            raise ChainError(
                f"Step {index} changed its input state in place, but the gradient needs that "
                "state again. Return new tensors (`x = x + …` instead of `x += …`)."
            )
        if self.nested and not same_leaves(State.of((args, kwargs)), arguments):
            raise ChainError(
                f"Step {index} changed a list or dict among the chain's arguments. The steps after "
                "it would see that in a plain loop, and not when they run again. Carry what "
                "changes in the state."
            )
        return after

    def advance(
        self,
        index: int,
        state: State,
        wanted: list[bool],
        mark: Mark,
        begin_again: Callable[[], None],
    ) -> StepResult:
        """Run a step with a graph that saves nothing and is let go: note [First runs].

        Args:
            index: The step.
            state: The state that enters it.
            wanted: Which leaves of that state need a gradient.
            mark: For the nodes of its graph.
            begin_again: Undoes what a run of the step has changed: streams, buffers.
        """
        if self.sharded and any(wanted):  # FSDP2 would wait for the gradients of the graph
            leaving = self.unrecorded(index, state)
            needed = [differentiable(leaf) for leaf in leaving.leaves]
            everything, entered = set(range(len(self.shared))), dict.fromkeys(range(len(wanted)), 1)
            return StepResult(leaving, needed, everything, None, entered, {})
        if not self.saves:
            try:
                return self._first(index, state, wanted, mark, light=True)
            except NeedsSavedError:
                self.saves = True
            begin_again()
        return self._first(index, state, wanted, mark, light=False)

    def unrecorded(self, index: int, state: State) -> State:
        """Run a step that no gradient passes."""
        with torch.no_grad():
            return self.run(index, state).detached()

    def _first(
        self, index: int, state: State, wanted: list[bool], mark: Mark, *, light: bool
    ) -> StepResult:
        """Run a step with a graph that is let go at once; a light one saves nothing."""
        run = self.run if light else self.run_as_recorded
        return self._let_go(index, state.entering(wanted), mark, run, light=light)

    def _let_go(
        self,
        index: int,
        entering: State,
        mark: Mark,
        run: Callable[[int, State], State],
        *,
        light: bool,
    ) -> StepResult:
        make = self._lightly if light else self._recorded
        recorded = make(index, entering, mark, run)
        result, unknown_leaves = self.outcome(recorded), recorded.unknown_leaves
        begun = [weakref.ref(leaf) for leaf in entering.leaves if wants_gradient(leaf)]
        del recorded, entering
        refuse_unknown_leaves(unknown_leaves)
        # A leaf that outlives its graph is part of something that the step has kept.
        Guard(ref() for ref in begun)
        return result

    def _lightly(
        self, index: int, entering: State, mark: Mark, run: Callable[[int, State], State]
    ) -> StepGraph:
        """Record a step with a graph that saves nothing.

        Raises:
            NeedsSavedError: If the step itself needs what its graph would have saved.
        """
        block = nothing_saved()
        asking = block.asking
        with block:
            try:
                recorded = self._recorded(index, entering, mark, run)
            except Exception as error:
                if needs_saved(error, asking):
                    raise NeedsSavedError from error
                raise
            if asking.asked:
                raise NeedsSavedError
            return recorded

    def record(self, index: int, state: State, wanted: list[bool], mark: Mark) -> StepGraph:
        """Run a step with its graph, between leaves of its own."""
        return self._recorded(index, state.entering(wanted), mark, self.run_as_recorded)

    def note_backward(self) -> None:
        """Note what gradients are computed under: hooks, and autocast where that was asked for."""
        self.hooked = [tensor for tensor in self.inner_captured if hooks_of(tensor)]
        self.autocast = OwnAutocast({tensor.device.type for tensor in self.watched} | {"cpu"})

    def again(self, index: int, state: State, wanted: list[bool], rerun: ReplayHooks) -> StepGraph:
        """Run a step again with its graph."""
        with rerun.around:
            recorded = self.record(index, state, wanted, rerun.mark)
        rerun.check(self.outcome(recorded))
        return recorded

    def run_as_recorded(self, index: int, state: State) -> State:
        """Run one step in the context that steps are recorded in."""
        if self.recording is nullcontext:  # which takes longer than this question
            return self.run(index, state)
        with self.recording():
            return self.run(index, state)

    def _recorded(
        self,
        index: int,
        entering: State,
        mark: Mark,
        run: Callable[[int, State], State],
    ) -> StepGraph:
        graphs = torch.is_grad_enabled()
        set_grad_enabled(True)
        try:
            leaving = run(index, entering)
        finally:
            set_grad_enabled(graphs)
        return self.between(index, entering, leaving, mark)

    def outcome(self, recorded: StepGraph) -> StepResult:
        """Return what is to be known of a recorded step when its graph is gone."""
        leaving = recorded.leaving
        return StepResult(
            leaving.detached(),
            [wants_gradient(leaf) for leaf in leaving.leaves],
            # Of shards the graph does not tell which it uses.
            set(range(len(self.shared))) if self.sharded else set(recorded.uses),
            recorded.signature,
            {place: len(uses) for place, uses in recorded.entered.items()},
            _aliases(recorded.entering, leaving),
        )

    def between(self, index: int, entering: State, leaving: State, mark: Mark) -> StepGraph:
        """Return the graph between two states, and what it uses.

        Raises:
            ChainError: If it leads to the graph of another step.
        """
        uses: Uses = {}
        entered: Uses = {}
        unknown_leaves: list[UnknownLeaf] = []
        own = {id(leaf): place for place, leaf in enumerate(entering.leaves)}
        found, nodes = leaves_used(leaving.leaves, mark)
        like = signature(nodes) if self.counted and not self.sharded else None
        for use in found:
            leaf = use[0]
            if (at := self.known.get(id(leaf))) is not None:
                uses.setdefault(at, []).append(use)
            elif id(leaf) in own:
                entered.setdefault(own[id(leaf)], []).append(use)
            elif all(leaf is not part for part in gathered(self.sharded)):
                unknown_leaves.append(UnknownLeaf(index, tuple(leaf.shape), weakref.ref(leaf)))
        return StepGraph(entering, leaving, uses, like, entered, unknown_leaves)

    def outside(self, used: Iterable[int]) -> set[int]:
        """Return the ids of what the steps share at some places, as it is outside of them."""
        shared = [*filter(wants_gradient, self.arguments.leaves), *self.captured]
        return {id(shared[at]) for at in used}

    def backprop(
        self,
        recorded: StepGraph,
        after: Cotangents,
        at_node: Cotangents,
        accumulator: GradAccumulator,
    ) -> Cotangents:
        """Send cotangents back through a recorded step, and add up what the steps share.

        Args:
            recorded: Its graph.
            after: Cotangents of the state that left it.
            at_node: Cotangents that the state which entered it has from elsewhere.
            accumulator: Gradients so far; this step's are added to them.

        Returns:
            The cotangents of the state that entered it.
        """
        entering, leaving = recorded.entering.leaves, recorded.leaving.leaves
        places = [place for place, leaf in enumerate(entering) if wants_gradient(leaf)]
        roots = [(leaving[p], g) for p, g in after.items() if leaving[p].requires_grad]
        # As in note [Sums in order], 1: a node that a loss looks at too.
        if at_node:
            roots += [(entering[p], g) for p, g in at_node.items() if entering[p].requires_grad]
        uses = self._all_shared if self.trains_shards else recorded.uses
        asked = accumulator.ask(uses, self.shared)
        if not roots or not (places or asked.places):
            return {}
        outputs, cotangents = zip(*roots, *asked.roots, strict=True)
        inputs = (*[entering[place] for place in places], *asked.leaves)
        with recorded.guard or _UNGUARDED:
            grads = self._gradients(outputs, inputs, cotangents)
        accumulator.take(asked, grads[len(places) :], uses)
        before = {p: g for p, g in zip(places, grads, strict=False) if g is not None}
        for place, g in before.items():
            if is_plain(g):  # else it may be a batch of gradients
                entering[place].grad = g  # for a step that keeps its state to look at it
        return before

    @property
    def _all_shared(self) -> Uses:
        """Uses that make a sum of every tensor a root: of shards the graph does not tell them."""
        return {at: [(leaf, None, 0)] * 2 for at, leaf in enumerate(self.shared)}

    def _gradients(
        self,
        outputs: tuple[Tensor, ...],
        inputs: tuple[Tensor, ...],
        cotangents: tuple[Tensor, ...],
    ) -> Sequence[Tensor | None]:
        if self.trains_shards:
            trained = [tensor for tensor in gathered(self.sharded) if tensor.requires_grad]
            return gradients_by_accumulation(outputs, inputs, cotangents, trained)
        try:
            if not self.hooked and not self.autocast.states:
                return run_backward(outputs, cotangents, False, False, inputs)
            with without_hooks(self.hooked), self.autocast.on():
                return run_backward(outputs, cotangents, False, False, inputs)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise ChangedTensorError(
                "A tensor that a step uses, a weight or a part of its state, was changed in place "
                "after the step ran, so its gradient cannot be computed. Call `backward()` before "
                f"`optimizer.step()` and other in-place changes. ({str(error).splitlines()[0]})"
            ) from error

    def refuse_own_backward(self, index: int) -> None:
        """See that steps up to one have accumulated no gradients in tensors outside of them.

        Raises:
            ChainError: If they have: their reruns would do so again.
        """
        for tensor, before in zip(self.inner_captured, self.grads, strict=True):
            if tensor.is_leaf and tensor.grad is not None and _of_grad(tensor) != before:
                raise ChainError(
                    f"Step {index}, or one before it, calls `backward()` on something that depends "
                    f"on a tensor of shape {tuple(tensor.shape)} outside the chain. Its `.grad` "
                    "grows whenever the step runs again. Take the gradient that the step needs "
                    "with `torch.autograd.grad`, or take that loss after the chain."
                )

    @property
    def changed(self) -> list[Tensor]:
        """Tensors that the steps can reach and that have changed since the forward pass."""
        now = versions(self.watched)
        if now == self.versions:
            return []
        pairs = zip(self.watched, now, self.versions, strict=True)
        return [tensor for tensor, after, before in pairs if after != before]

    def refuse_changes(self, index: int, used: Callable[[Tensor], bool]) -> None:
        """Check that no tensor that a step uses has changed since the forward pass.

        One that it can reach but does not use, such as another network of the same object, may.

        Raises:
            ChangedTensorError: If one has.
        """
        for tensor in filter(used, self.changed):
            raise ChangedTensorError(
                f"A tensor of shape {tuple(tensor.shape)} that step {index} uses was changed "
                "in place after the forward pass, so its gradient would be that of another "
                "chain. Call `backward()` before `optimizer.step()` and other in-place "
                "changes."
            )

    def _name(self, index: int, error: Exception) -> None:
        notes = [f"This happened in step {index} of 0 … {self.num_steps - 1} of a chain."]
        if "Can't detach views in-place" in str(error):
            notes.append(
                "A chain gives its steps views of their states, which `x.detach_()` does not take: "
                "write `x = x.detach()`."
            )
        for note in notes:
            if note not in getattr(error, "__notes__", ()):
                # What `add_note` does, which Python 3.10 has not.
                error.__dict__.setdefault("__notes__", []).append(note)


def _of_grad(tensor: Tensor) -> tuple[int, int] | None:
    grad = tensor.grad if tensor.is_leaf else None
    return None if grad is None else (id(grad), version_or_zero(grad))


_INPLACE = (
    "leaf Variable that requires grad is being used in an in-place operation",
    "was created in no_grad mode and is being modified inplace",
)


def _in_place(index: int, error: Exception) -> ChainError | None:
    """Return the error for a step that changes a leaf in place, which torch forbids."""
    if not any(text in str(error) for text in _INPLACE):
        return None
    return ChainError(
        f"Step {index} changed a tensor that requires a gradient in place: its input state, most "
        "likely, but the gradient needs that state again. Return new tensors (`x = x + …` instead "
        "of `x += …`)."
    )


def refuse_unknown_leaves(unknown_leaves: Sequence[UnknownLeaf]) -> None:
    """See that leaves which the chain does not know were the step's own, and are gone with it.

    Raises:
        CapturedTensorError: If one lives on: the step has captured it.
    """
    if any(unknown.leaf() is not None for unknown in unknown_leaves):
        gc.collect()  # what the step made may wait in a circle
    for step, shape, leaf in unknown_leaves:
        if leaf() is not None:
            raise CapturedTensorError(
                f"Step {step} uses a tensor of shape {shape} that requires a gradient and that the "
                "chain cannot see. Name it, `CheckpointedChain(…, params=[tensor])`, pass it as an "
                "argument of the chain, or detach it if its gradient is not wanted. (If it began "
                "to require one after the forward pass: call `requires_grad_()` before the chain.)"
            ).in_step(step)
