"""The nodes of autograd's graph that stand for a trajectory: one a step, between its states."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from chainograd.engine.autograd import refuse_backward
from chainograd.engine.hooks import call_with_gradients_only, hooks_with_gradients_only
from chainograd.engine.run import Run
from chainograd.engine.uses import StateUses
from chainograd.state import State
from chainograd.trajectory.backward_pass import current_pass
from chainograd.trajectory.second_order import Gradients

# Note [Links]
# 1. A state in the middle of a trajectory is a tensor as any other: hooks on it, its `.grad` and
#    `torch.autograd.grad` see all that flows back to it, from losses on it and through later steps.
#    So each step has a node of its own, its link, between the states that the user sees. The links
#    that one backward pass runs carry one `BackwardPass` on, from where the link before left it.
# 2. What the steps share is an input of the last link alone, the link of the first step which a
#    gradient needs: its gradient is one sum over all steps (note [Sums in order]). A thread, an
#    empty tensor that never has a gradient, leads from each link to the next. So the last link is
#    reached even if a step cuts the gradient of its state off.
# 3. A leaf that a step hands on is the same tensor in both states, as in the plain loop, and the
#    link of that step knows nothing of it. (`grad_transform` is to see it at every state: then it
#    goes through the link.)
# 4. A link takes a state once for each use in its step: note [Use by use].


@dataclass(slots=True, eq=False)
class Link:
    """What a link knows of its step.

    Attributes:
        run: What the forward pass left.
        step: The step's index.
        places: Leaves of the state after it that it has gradients for.
        uses: How it uses the state before it.
        before: The tensors of the groups, as far as they are alive.
        values: What the groups are again, while a second derivative is taken.
    """

    run: Run
    step: int
    places: list[int]
    uses: StateUses
    before: list[weakref.ref[Tensor]]
    values: Sequence[Any] = ()

    @property
    def last(self) -> bool:
        """Whether no link comes after it on the way back."""
        return self.step == self.run.first_pass.first

    def attached(self, tensors: list[Tensor], thread: Tensor | None, after: State) -> Any:
        """Return the leaves that the step returns, as functions of the tensors of its groups."""
        pairs = zip(tensors, self.uses.counts, strict=True)
        inputs = [tensor for tensor, count in pairs for _ in range(count)]
        inputs += self.run.inputs.steps_tensors if thread is None else [thread]
        places = iter(range(len(tensors)))
        # What is saved is but the tensors' places in the graph: their values are the run's matter.
        with saved_tensors_hooks(lambda _: next(places), lambda place: self.values[place]):
            return LinkFunction.apply(self, tensors, after, *inputs)


class LinkFunction(torch.autograd.Function):
    """The node that stands for a step: note [Links]."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, link: Link, tensors: list[Tensor], after: State, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.link = link
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        # Aliases: what the run keeps must not hold the graph that holds the run.
        return *(after.leaves[place].detach() for place in link.places), torch.empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # noqa: D102
        link: Link = ctx.link
        refuse_backward(link.run, link.step, grads)
        given = {p: g for p, g in zip(link.places, grads, strict=False) if g is not None}
        of_state, of_steps = _gradients(ctx, link, given)
        _let_hooks_see_gradients_only(link, of_state, of_steps)
        slots: list[Tensor | None] = []
        for parts, count in zip(of_state, link.uses.counts, strict=True):
            slots += [*parts, *[None] * (count - len(parts))]
        return None, None, None, *slots, *(of_steps if link.last else [None])


def _gradients(ctx: Any, link: Link, given: dict[int, Tensor]) -> Gradients:
    backward_pass = current_pass(link.run)
    if not torch.is_grad_enabled():
        return backward_pass.through(link.step, given, link.uses)

    def attached(values: Sequence[Any]) -> tuple[Tensor, ...]:
        link.values = values
        try:
            return ctx.saved_tensors
        finally:
            link.values = ()

    return backward_pass.through_differentiably(link.step, given, link.uses, attached)


def _let_hooks_see_gradients_only(
    link: Link, of_state: list[list[Tensor]], of_steps: list[Tensor | None]
) -> None:
    before = [one() for one, parts in zip(link.before, of_state, strict=True) if not parts]
    missing = [tensor for tensor in before if tensor is not None]
    if link.last:
        outer = zip(link.run.inputs.steps_tensors, of_steps, strict=True)
        missing += [tensor for tensor, g in outer if g is None]
    call_with_gradients_only(missing)


def attach_links(run: Run, x: State, states: dict[int, State]) -> list[State]:
    """Return the states of a trajectory, x first, as differentiable outcomes of each other.

    Args:
        run: What the forward pass left.
        x: The state that enters step 0, as the caller has it.
        states: Those after it, by their indices.
    """
    visible, thread = [x], None
    ends = [i for i in range(run.plan.num_steps) if _own(run, i)]
    for i in range(run.plan.num_steps):
        leaves, outputs = list(states[i + 1].leaves), []
        if ends and run.first_pass.first <= i <= ends[-1]:
            link, tensors = _link(run, i, visible[-1])
            *outputs, thread = link.attached(tensors, thread, states[i + 1])
        for place, output in zip(_own(run, i), outputs, strict=True):
            hooks_with_gradients_only(output)
            leaves[place] = output
        for place, alias in _aliases(run, i).items():
            leaves[place] = (
                visible[-1].leaves[alias.place] if alias.entering else leaves[alias.place]
            )
        visible.append(states[i + 1]._replace(leaves=tuple(leaves)))
    return visible


def _aliases(run: Run, i: int) -> dict[int, Any]:
    return run.first_pass.aliases[i] if run.options.transform is None else {}


def _own(run: Run, i: int) -> list[int]:
    """Return the leaves of the state after step i that come from its link."""
    aliases = _aliases(run, i)
    return [
        p for p, wanted in enumerate(run.first_pass.wanted[i + 1]) if wanted and p not in aliases
    ]


def _link(run: Run, i: int, before: State) -> tuple[Link, list[Tensor]]:
    """Return the link of step i, and the tensors of its groups."""
    groups: dict[int, list[int]] = {}
    counts: dict[int, int] = {}
    handed_on = [alias.place for alias in _aliases(run, i).values() if alias.entering]
    for place, count in sorted(run.first_pass.entered[i].items()):
        if run.first_pass.wanted[i][place] and count > handed_on.count(place):
            key = id(before.leaves[place])
            groups.setdefault(key, []).append(place)
            counts[key] = counts.get(key, 0) + count - handed_on.count(place)
    tensors = [before.leaves[places[0]] for places in groups.values()]
    alive = [weakref.ref(tensor) for tensor in tensors]
    uses = StateUses(list(groups.values()), list(counts.values()))
    return Link(run, i, _own(run, i), uses, alive), tensors
