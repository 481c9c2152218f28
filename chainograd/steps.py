"""One step at a time: run it without a graph, record it, send cotangents back through it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.autograd import Variable

from chainograd.captured import leaves_used
from chainograd.errors import CapturedTensorError, ChainError, ChangedTensorError
from chainograd.kept import Look
from chainograd.sharded import gathered, gradients_by_accumulation, is_shard, trainable
from chainograd.stand_ins import StandIns
from chainograd.states import (
    NO_ARGUMENTS,
    Cotangents,
    State,
    differentiable,
    refuse_hidden,
    same_leaves,
    stand_in,
    versions,
    wants_gradient,
)
from chainograd.sums import Sums, Uses


@dataclass(slots=True, eq=False)
class Recorded:
    """A step's graph.

    Attributes:
        entering: Detached leaves that it begins with.
        leaving: The state that it ends with.
        uses: Where it uses what the steps share.
    """

    entering: State
    leaving: State
    uses: Uses


class Rerun(NamedTuple):
    """What goes with running a step again: putting noise back before, checking the state after."""

    rewind: Callable[[], None]
    check: Callable[[State], None]


def looking(look: Look | None, index: int) -> Rerun | None:
    """Return what goes with a first run that is looked at: nothing before, the look after."""
    return None if look is None else Rerun(lambda: None, partial(look.at, index))


def _with_stand_ins(
    swapped: dict[int, Tensor],
    handed: set[int],
    step: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    with StandIns(swapped, handed):
        return step(*args, **kwargs)


# What `torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)` calls. For a small
# step, what that function checks in Python takes as long as the engine below it. Here the shapes
# are known to match: cotangents come from the engine itself, or were looked at before.
_run_backward = partial(
    Variable._execution_engine.run_backward, allow_unreachable=True, accumulate_grad=False
)


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
    recording: Callable[[], AbstractContextManager[object]] = nullcontext
    routes: list[Tensor] = field(default_factory=list)
    sharded: list[Any] = field(default_factory=list)
    inner_arguments: State = field(init=False)
    inner_captured: list[Tensor] = field(init=False)
    shared: list[Tensor] = field(init=False)  # the `inputs` as the steps see them
    known: dict[int, int] = field(init=False)  # their places, by their ids
    called: Callable[..., Any] = field(init=False)  # the step, on what stands in for others
    watched: list[Tensor] = field(init=False)  # what must not change before the backward pass
    versions: list[int] = field(init=False)  # how often it was changed by now
    handed: set[int] = field(default_factory=set)  # ids of what stand-ins were handed for
    trains_shards: bool = field(init=False)
    nested: bool = field(init=False)  # whether arguments hold lists or dicts

    def __post_init__(self) -> None:
        args, kwargs = self.arguments.tree()
        self.nested = len(self.arguments.leaves) > 0 and not all(
            pytree.tree_structure(value).is_leaf() for value in (*args, *kwargs.values())
        )
        self.inner_arguments = self.arguments._replace(
            leaves=tuple(
                stand_in(leaf) if wants_gradient(leaf) else leaf for leaf in self.arguments.leaves
            )
        )
        self.routes = self.routes or self.captured
        # A plain parameter is used as it is: note [Stand-ins].
        self.trains_shards = any(map(trainable, self.sharded))
        self.inner_captured = [
            stand_in(tensor)
            if tensor._backward_hooks
            or not tensor.is_leaf
            or (self.trains_shards and not is_shard(tensor))
            else tensor
            for tensor in self.routes
        ]
        self.watched = [*self.arguments.tensors, *self.captured]
        self.versions = versions(self.watched)
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
            self.called = partial(_with_stand_ins, swapped, self.handed, self.step)

    @property
    def inputs(self) -> list[Tensor]:
        """Tensors that gradients are returned for: of the arguments, and the captured ones."""
        return [leaf for leaf in self.arguments.leaves if wants_gradient(leaf)] + self.routes

    def leave_out_unused(self) -> bool:
        """Forget captured tensors with a graph that no step was handed; return if there were any.

        What stands in for them stays in their places, so that nothing holds their graphs.
        """
        unused = [
            place
            for place, (outer, route) in enumerate(zip(self.captured, self.routes, strict=True))
            if not route.is_leaf and id(outer) not in self.handed
        ]
        for place in unused:
            inner = self.inner_captured[place]
            self.watched[len(self.watched) - len(self.captured) + place] = inner
            self.captured[place] = self.routes[place] = inner
        if unused:
            self._note_shared()
        return bool(unused)

    def on(self, inputs: list[Tensor]) -> Steps:
        """Return the same steps, run on other tensors in place of ``inputs``."""
        steps, coming = copy.copy(self), iter(inputs)
        steps.inner_arguments = self.arguments._replace(
            leaves=tuple(next(coming) if wants_gradient(t) else t for t in self.arguments.leaves)
        )
        steps.inner_captured = list(coming)
        steps._note_shared()
        return steps

    def run(self, index: int, state: State) -> State:
        """Run one step, in the grad mode that is in force."""
        return self.call(index, state, self.inner_arguments)

    def run_as_recorded(self, index: int, state: State) -> State:
        """Run one step in the context that steps are recorded in."""
        if self.recording is nullcontext:  # which takes longer than this question
            return self.run(index, state)
        with self.recording():
            return self.run(index, state)

    def call(self, index: int, state: State, arguments: State) -> State:
        """Call the user's step; the state it is given must survive it."""
        before = versions(state.leaves)
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
            raise
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

    def advance(self, index: int, state: State) -> State:
        """Run a step without a graph."""
        # As in a rerun: a gradient that a step takes for itself must be the same to the bit.
        # Inside of torch's own functions graphs are off already, and to say so again takes time.
        if not torch.is_grad_enabled():
            after = self.run_as_recorded(index, state)
        else:
            with torch.no_grad():
                after = self.run_as_recorded(index, state)
        # A step that turns graphs on for a part of itself may return some of it.
        return after.detached() if any(map(wants_gradient, after.leaves)) else after

    def tried(
        self, index: int, state: State, wanted: list[bool], look: Look | None = None
    ) -> tuple[State, bool]:
        """Run a step with a graph that is let go at once; return whether its result needs one.

        Where the state needs no gradient there is no graph until something trainable is met, so
        this costs nothing.
        """
        leaving = self.record(index, state, wanted, looking(look, index)).leaving
        return leaving.detached(), any(map(wants_gradient, leaving.leaves))

    def record(
        self, index: int, state: State, wanted: list[bool], rerun: Rerun | None = None
    ) -> Recorded:
        """Run a step with its graph, between leaves of its own, and what goes with the run."""
        if rerun is not None:
            rerun.rewind()
        entering = state.entering(wanted)
        graphs = torch.is_grad_enabled()
        torch._C._set_grad_enabled(True)  # what `torch.enable_grad()` does, in a fifth of its time
        try:
            leaving = self.run_as_recorded(index, entering)
        finally:
            torch._C._set_grad_enabled(graphs)
        if rerun is not None:
            rerun.check(leaving)
        return Recorded(entering, leaving, self.uses_between(index, entering, leaving))

    def uses_between(self, index: int, entering: State, leaving: State) -> Uses:
        """Return where the graph between two states uses what the steps share.

        Raises:
            CapturedTensorError: If it has other leaves than the chain knows.
        """
        uses: Uses = {}
        own = set(map(id, entering.leaves))
        for use in leaves_used(leaving.leaves):
            leaf = use[0]
            at = self.known.get(id(leaf))
            if at is not None:
                uses.setdefault(at, []).append(use)
            elif id(leaf) not in own and all(leaf is not part for part in gathered(self.sharded)):
                raise CapturedTensorError(
                    f"Step {index} uses a tensor of shape {tuple(leaf.shape)} that requires a "
                    "gradient and that the chain cannot see. Name it, "
                    "`CheckpointedChain(…, params=[tensor])`, pass it as an argument of the chain, "
                    "or detach it if its gradient is not wanted. (If it began to require one after "
                    "the forward pass: call `requires_grad_()` before the chain.)"
                )
        return uses

    def leaves_of(self, state: State) -> set[int]:
        """Return the ids of what the steps share that is in a state's graph, as it is outside."""
        found = {id(leaf) for leaf, _, _ in leaves_used(state.leaves)}
        wanted = filter(wants_gradient, self.arguments.leaves)
        outside = [*wanted, *self.captured]
        return {id(t) for t, inner in zip(outside, self.shared, strict=True) if id(inner) in found}

    def backprop(
        self, recorded: Recorded, after: Cotangents, at_node: Cotangents, sums: Sums
    ) -> Cotangents:
        """Send cotangents back through a recorded step, and add up what the steps share.

        Args:
            recorded: Its graph.
            after: Cotangents of the state that left it.
            at_node: Cotangents that the state which entered it has from elsewhere.
            sums: Gradients so far; this step's are added to them.

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
        asked = sums.ask(uses, self.shared)
        if not roots or not (places or asked.places):
            return {}
        outputs, cotangents = zip(*roots, *asked.roots, strict=True)
        inputs = (*[entering[place] for place in places], *asked.leaves)
        grads = self._gradients(outputs, inputs, cotangents)
        sums.take(asked, grads[len(places) :], uses)
        return {p: g for p, g in zip(places, grads, strict=False) if g is not None}

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
        return _run_backward(outputs, cotangents, False, False, inputs)

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
        if "does not require grad" in str(error) and not torch.is_grad_enabled():
            notes.append(
                "Steps of a chain first run without graphs. Where a step takes a gradient for "
                "itself, as guidance does, put that part under `with torch.enable_grad():`."
            )
        if "Can't detach views in-place" in str(error):
            notes.append(
                "A chain gives its steps views of their states, which `x.detach_()` does not take: "
                "write `x = x.detach()`."
            )
        for note in notes:
            if note not in getattr(error, "__notes__", ()):
                # What `add_note` does, which Python 3.10 has not.
                error.__dict__.setdefault("__notes__", []).append(note)
