"""Carries a plan out: runs steps, keeps states, sends cotangents back. One action at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from chainograd.captured import StandIns, unrouted
from chainograd.errors import CapturedTensorError, ChainError, ChangedTensorError
from chainograd.plan import Action, Advance, Backprop, Drop, Keep, Load, Plan, Record
from chainograd.replay import Autocast, RandomStreams, Verify, autocast_as, compare, undisturbed

# Note [Sums in order]
# The plain loop adds up a parameter's gradient use by use, from the last step to the first. To
# give the same bits, each step's backward starts from the sum so far: the parameter itself is
# among the outputs that are differentiated, with that sum as its cotangent.


class State(NamedTuple):
    """A state, flattened: its leaves (tensors and whatever else) and how they belong together."""

    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, tree: Any) -> State:
        """Flatten a pytree; containers are thereby copied, tensors are not."""
        leaves, spec = pytree.tree_flatten(tree)
        return cls(tuple(leaves), spec)

    def tree(self) -> Any:
        """Return the state as the user's pytree."""
        return pytree.tree_unflatten(list(self.leaves), self.spec)


class Recorded(NamedTuple):
    """A step's graph: between detached leaves that enter it and the state that leaves it."""

    entering: State
    leaving: State


def differentiable(leaf: Any) -> bool:
    """Return whether a leaf of a state can carry a gradient."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def stand_in(tensor: Tensor) -> Tensor:
    """Return a leaf with the tensor's values, outside its graph and without its hooks."""
    return tensor.detach().requires_grad_()


@dataclass(slots=True, eq=False)
class Call:
    """One call of a chain: everything its steps see besides the state.

    Attributes:
        step: The user's step.
        plan: What is kept.
        x_T: The state that enters step 0.
        arguments: Extra arguments and keyword arguments, flattened.
        captured: Tensors requiring a gradient that the step reaches by itself.
        streams: Random streams that steps may draw from.
        verify: How a recomputed state is compared with the kept one.
    """

    step: Callable[..., Any]
    plan: Plan
    x_T: State
    arguments: State
    captured: list[Tensor]
    streams: RandomStreams
    verify: Verify
    autocast: tuple[Autocast, ...]
    nodes: dict[int, State] = field(default_factory=dict)
    graphs: dict[int, Recorded] = field(default_factory=dict)
    random: list[tuple[Tensor, ...]] = field(default_factory=list)
    x_T_wanted: tuple[bool, ...] = ()
    inner_arguments: State = field(init=False)
    inner_captured: list[Tensor] = field(init=False)
    versions: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.x_T_wanted = tuple(_wants_gradient(leaf) for leaf in self.x_T.leaves)
        self.inner_arguments = self.arguments._replace(
            leaves=tuple(
                stand_in(leaf) if _wants_gradient(leaf) else leaf for leaf in self.arguments.leaves
            )
        )
        # A plain parameter is used as it is: note [Captured tensors], 3.
        self.inner_captured = [
            tensor if tensor.is_leaf and not tensor._backward_hooks else stand_in(tensor)
            for tensor in self.captured
        ]
        self.versions = [tensor._version for tensor in self.watched]

    @property
    def inputs(self) -> list[Tensor]:
        """Tensors that gradients are returned for: of the state, the arguments, the captured."""
        outside = (*self.x_T.leaves, *self.arguments.leaves)
        return [leaf for leaf in outside if _wants_gradient(leaf)] + self.captured

    @property
    def shared(self) -> list[Tensor]:
        """What every step uses, as steps see it: arguments and captured tensors."""
        arguments = [leaf for leaf in self.inner_arguments.leaves if _wants_gradient(leaf)]
        return arguments + self.inner_captured

    @property
    def watched(self) -> list[Tensor]:
        """Tensors that must not change in place before the backward pass is over."""
        return [leaf for leaf in self.arguments.leaves if isinstance(leaf, Tensor)] + self.captured

    def run(self, index: int, state: State) -> State:
        """Run one step, in the grad mode that is in force."""
        args, kwargs = self.inner_arguments.tree()
        with self._stand_ins():
            return State.of(self.step(state.tree(), index, *args, **kwargs))

    def _stand_ins(self) -> AbstractContextManager[object]:
        swapped = {
            id(outer): inner
            for outer, inner in zip(self.captured, self.inner_captured, strict=True)
            if outer is not inner
        }
        return StandIns(swapped) if swapped else nullcontext()

    def advance(self, index: int, state: State) -> State:
        """Run a step without a graph; its input must survive it."""
        before = [leaf._version for leaf in state.leaves if isinstance(leaf, Tensor)]
        with torch.no_grad():
            after = self.run(index, state)
        if before != [leaf._version for leaf in state.leaves if isinstance(leaf, Tensor)]:
            raise ChainError(
                f"Step {index} changed its input state in place, but the gradient needs that "
                "state again. Return new tensors (`x = x + …` instead of `x += …`)."
            )
        return after

    def record(self, index: int, state: State) -> Recorded:
        """Run a step with its graph, between leaves of its own."""
        # Detached, so that the graph of this step is freed as soon as its cotangent is known:
        # holding two steps' graphs at once is the memory that the chain exists to save.
        wanted = [differentiable(leaf) for leaf in state.leaves] if index else self.x_T_wanted
        entering = state._replace(
            leaves=tuple(
                leaf.detach().requires_grad_(want) if differentiable(leaf) else leaf
                for leaf, want in zip(state.leaves, wanted, strict=True)
            )
        )
        with torch.enable_grad():
            leaving = self.run(index, entering)
        inside = {id(t) for t in (*entering.leaves, *self.shared)}
        for stranger in unrouted(filter(_wants_gradient, leaving.leaves), inside):
            raise CapturedTensorError(
                f"Step {index} uses a tensor of shape {tuple(stranger.shape)} that requires a "
                "gradient and that the chain cannot see. Name it, "
                "`CheckpointedChain(…, params=[tensor])`, pass it as an argument of the chain, "
                "or detach it if its gradient is not wanted."
            )
        return Recorded(entering, leaving)

    def forward(self) -> State:
        """Carry out the plan's forward actions; return the chain's result, detached."""
        state, self.random = self.x_T, [self.streams.state()]
        with autocast_as(self.autocast):
            for action in self.plan.forward:
                match action:
                    case Keep(index):
                        self.nodes[index] = state
                    case Advance(index):
                        state = self.advance(index, state)
                        self.random.append(self.streams.state(self.random[-1]))
                    case Record(index):
                        self.graphs[index] = self.record(index, state)
                        state = _detached(self.graphs[index].leaving)
                        self.random.append(self.streams.state(self.random[-1]))
                    case _:
                        _refuse(action, "forward")
        return state

    def backward(self, nodes: dict[int, State], cotangents: list[Tensor | None]) -> list[Any]:
        """Carry out the plan's backward actions; return the gradients of ``inputs``."""
        nodes, state = dict(nodes), None
        sums: list[Tensor | None] = [None] * len(self.shared)
        with undisturbed(self.streams), autocast_as(self.autocast):
            for action in self.plan.backward:
                match action:
                    case Load(index):
                        state = nodes[index]
                    case Record(index):
                        assert state is not None, "a plan loads a state before it runs a step"
                        self.graphs[index] = self.replay(index, state, nodes.get(index + 1))
                    case Backprop(index):
                        if index not in self.graphs:  # a second backward pass: graphs are gone
                            self.graphs[index] = self.replay(index, nodes[index], None)
                        cotangents, sums = self.backprop(index, cotangents, sums)
                    case Drop(index):
                        # One node further is kept: it is what a rerun is compared with.
                        nodes.pop(index + 1, None)
                    case _:
                        _refuse(action, "backward")
        return [g for g, wanted in zip(cotangents, self.x_T_wanted, strict=True) if wanted] + sums

    def replay(self, index: int, state: State, expected: State | None) -> Recorded:
        """Run a step again, with its graph, as it ran the first time."""
        changed = [
            tensor
            for tensor, version in zip(self.watched, self.versions, strict=True)
            if tensor._version != version
        ]
        if changed:
            raise ChangedTensorError(
                f"A tensor of shape {tuple(changed[0].shape)} that step {index} uses was changed "
                "in place after the forward pass, so its gradient would be that of another "
                "chain. Call `backward()` before `optimizer.step()` and other in-place changes."
            )
        if self.random[index] is not self.random[index + 1]:
            self.streams.set(self.random[index])
        recorded = self.record(index, state)
        if expected is not None:
            compare(index, expected.leaves, _detached(recorded.leaving).leaves, self.verify)
        return recorded

    def backprop(
        self, index: int, cotangents: list[Tensor | None], sums: list[Tensor | None]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Send cotangents of the state after step ``index`` to the state before it."""
        recorded, shared = self.graphs.pop(index), self.shared
        into = [leaf for leaf in recorded.entering.leaves if _wants_gradient(leaf)]
        roots = [
            (leaf, cotangent)
            for leaf, cotangent in zip(recorded.leaving.leaves, cotangents, strict=True)
            if _wants_gradient(leaf) and cotangent is not None
        ]
        # Note [Sums in order].
        roots += [
            (leaf, so_far) for leaf, so_far in zip(shared, sums, strict=True) if so_far is not None
        ]
        if not roots or not (into or shared):
            return [None] * len(recorded.entering.leaves), sums
        grads = iter(
            torch.autograd.grad(
                [leaf for leaf, _ in roots],
                [*into, *shared],
                [cotangent for _, cotangent in roots],
                allow_unused=True,
            )
        )
        before = [
            next(grads) if _wants_gradient(leaf) else None for leaf in recorded.entering.leaves
        ]
        return before, list(grads)


def _wants_gradient(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _detached(state: State) -> State:
    return state._replace(
        leaves=tuple(leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in state.leaves)
    )


def _refuse(action: Action, phase: str) -> None:
    raise ValueError(f"`plan` has {action} in its {phase} pass, where it means nothing.")


class ChainFunction(torch.autograd.Function):
    """The node of autograd's graph that stands for a whole chain.

    The forward pass has been carried out already; here its result is given its place in the
    graph. Nodes are saved tensors, so that autograd frees them and watches their versions.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, result: State, *inputs: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        ctx.call, ctx.num_leaves = call, len(result.leaves)
        ctx.places = [
            (index, place)
            for index, node in call.nodes.items()
            for place, leaf in enumerate(node.leaves)
            if isinstance(leaf, Tensor)
        ]
        ctx.save_for_backward(*(call.nodes[i].leaves[p] for i, p in ctx.places))
        ctx.skeletons = {
            i: node._replace(
                leaves=tuple(None if isinstance(leaf, Tensor) else leaf for leaf in node.leaves)
            )
            for i, node in call.nodes.items()
        }
        call.nodes = {}
        ctx.outputs = [p for p, leaf in enumerate(result.leaves) if isinstance(leaf, Tensor)]
        last = call.graphs.get(call.plan.num_steps - 1)
        outputs = [result.leaves[place] for place in ctx.outputs]
        if last is not None:
            dead = [
                result.leaves[place]
                for place in ctx.outputs
                if not _wants_gradient(last.leaving.leaves[place])
            ]
            ctx.mark_non_differentiable(*dead)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # noqa: D102
        cotangents: list[Tensor | None] = [None] * ctx.num_leaves
        for place, grad in zip(ctx.outputs, grads, strict=True):
            cotangents[place] = grad
        leaves = {i: list(node.leaves) for i, node in ctx.skeletons.items()}
        for (i, place), tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            leaves[i][place] = tensor
        nodes = {i: ctx.skeletons[i]._replace(leaves=tuple(leaves[i])) for i in leaves}
        call: Call = ctx.call
        if torch.is_grad_enabled():
            given = [g for g in cotangents if g is not None]
            present = [g is not None for g in cotangents]
            return None, None, *ChainVjp.apply(call, nodes, present, *call.inputs, *given)
        return None, None, *call.backward(nodes, cotangents)


class ChainVjp(torch.autograd.Function):
    """The backward pass of a chain as a function that can be differentiated once more.

    Its own backward pass builds the whole graph of the chain: second derivatives are exact, and
    cost the memory of the plain loop.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, nodes: Any, present: list[bool], *tensors: Tensor) -> Any:  # noqa: D102
        ctx.call, ctx.present = call, present
        ctx.save_for_backward(*tensors)
        given = iter(tensors[len(call.inputs) :])
        cotangents = [next(given).detach() if there else None for there in present]
        ctx.set_materialize_grads(False)
        return tuple(call.backward(nodes, cotangents))

    @staticmethod
    def backward(ctx: Any, *u: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]  # noqa: D102
        if torch.is_grad_enabled():
            # Its result would be a constant to autograd, and the next derivative silently wrong.
            raise ChainError(
                "A chain can be differentiated twice, but `create_graph=True` asks its second "
                "derivative to be differentiable. Leave it out, or run the plain loop over the "
                "steps for third derivatives."
            )
        call: Call = ctx.call
        count = len(call.inputs)
        cotangents = [stand_in(g) for g in ctx.saved_tensors[count:]]
        with torch.enable_grad(), undisturbed(call.streams), autocast_as(call.autocast):
            call.streams.set(call.random[0])
            leaves = [stand_in(leaf) if _wants_gradient(leaf) else leaf for leaf in call.x_T.leaves]
            state = call.x_T._replace(leaves=tuple(leaves))
            for index in range(call.plan.num_steps):
                state = call.run(index, state)
            inputs = [*filter(_wants_gradient, leaves), *call.shared]
            given = iter(cotangents)
            pairs = [
                (leaf, g)
                for leaf, there in zip(state.leaves, ctx.present, strict=True)
                if there and (g := next(given)) is not None and _wants_gradient(leaf)
            ]
            first = torch.autograd.grad(
                [leaf for leaf, _ in pairs],
                inputs,
                [g for _, g in pairs],
                create_graph=True,
                allow_unused=True,
            )
            roots = [(g, v) for g, v in zip(first, u, strict=True)
                     if g is not None and v is not None and g.requires_grad]  # fmt: skip
            if not roots:
                return None, None, None, *[None] * len(ctx.saved_tensors)
            second = torch.autograd.grad(
                [g for g, _ in roots],
                [*inputs, *cotangents],
                [v for _, v in roots],
                allow_unused=True,
            )
        return None, None, None, *second


def attach(call: Call, result: State, inputs: Sequence[Tensor]) -> State:
    """Return ``result`` as the differentiable outcome of ``inputs``."""
    outputs = iter(ChainFunction.apply(call, result, *inputs))  # type: ignore[arg-type]
    leaves = tuple(next(outputs) if isinstance(leaf, Tensor) else leaf for leaf in result.leaves)
    return result._replace(leaves=leaves)
