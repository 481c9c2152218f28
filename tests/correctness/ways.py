"""Ways to a gradient through a sampler: the loop, other libraries in their best form, a chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from chainograd import CheckpointedChain, Plan, binomial

Step = Callable[..., Any]


class Sampler(Protocol):
    """What a way makes of a step: called on a state, it runs all steps."""

    def __call__(self, x: Any, *args: Any) -> Any:
        """Return the last state."""
        ...

    def trajectory(self, x: Any, *args: Any) -> list[Any]:
        """Return all states, ``x`` the first."""
        ...


@dataclass(frozen=True)
class Loop:
    """The loop that a user writes, with each step as a way wraps it."""

    step: Step
    num_steps: int
    wrapped: Callable[[Step], Step]

    def __call__(self, x: Any, *args: Any) -> Any:
        """Return the last state."""
        step = self.wrapped(self.step)
        for i in range(self.num_steps):
            x = step(x, i, *args)
        return x

    def trajectory(self, x: Any, *args: Any) -> list[Any]:
        """Return all states."""
        states, step = [x], self.wrapped(self.step)
        for i in range(self.num_steps):
            states.append(step(states[-1], i, *args))
        return states


@dataclass(frozen=True)
class Way:
    """A name, and what makes a sampler of a step.

    ``make(step, num_steps, **options)``; the options are those of `CheckpointedChain` that tell it
    what it cannot know (``generators``, ``params``) or that a case is about (``plan``). The other
    ways have no such options and ignore them.
    """

    name: str
    make: Callable[..., Sampler] = field(repr=False)

    def sampler(self, step: Step, num_steps: int, **options: Any) -> Sampler:
        """Return a sampler, to be called once or several times."""
        return self.make(step, num_steps, **options)

    def __call__(self, step: Step, num_steps: int, x: Any, *args: Any, **options: Any) -> Any:
        """Run all steps and return the last state."""
        return self.sampler(step, num_steps, **options)(x, *args)


def step_by_step(name: str, wrapped: Callable[[Step], Step]) -> Way:
    """Return the way that wraps every step and leaves the loop as it is."""

    def make(step: Step, num_steps: int, **_: Any) -> Sampler:
        return Loop(step, num_steps, wrapped)

    return Way(name, make)


def uncached(step: Step) -> Step:
    """Forget what autocast has cast before every step, so that no two steps share a cast."""

    def cleared(*args: Any) -> Any:
        torch.clear_autocast_cache()
        return step(*args)

    return cleared


def not_reentrant(step: Step, **options: Any) -> Step:
    """Checkpoint every step as torch recommends it."""
    return lambda *args: checkpoint(step, *args, use_reentrant=False, **options)


def reentrant(step: Step) -> Step:
    """Checkpoint every step in the old way, which sees tensors that are arguments of their own.

    A state that is a tuple or a dictionary is therefore taken apart: gradients of tensors inside of
    one would be left out.
    """

    def flat(*args: Any) -> Any:
        leaves, structure = tree_flatten(args)
        leaving: list[Any] = []

        def inside(*leaves: Any) -> Any:
            state, form = tree_flatten(step(*tree_unflatten(leaves, structure)))
            leaving[:] = [form]
            return tuple(state)

        state = checkpoint(inside, *leaves, use_reentrant=True)
        return tree_unflatten(state, leaving[0])

    return flat


def selective(step: Step) -> Step:
    """Checkpoint every step and save the results of its matrix products."""
    aten = torch.ops.aten
    products = [aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default]
    return not_reentrant(step, context_fn=partial(create_selective_checkpoint_contexts, products))


class _Stream:
    """The hook with which torch_remat is told of torch's random stream."""

    snapshot = staticmethod(torch.get_rng_state)
    restore = staticmethod(torch.set_rng_state)


def rematerialized(step: Step) -> Step:
    """Checkpoint every step by torch_remat, with the hook for random streams that it asks for."""
    import torch_remat  # pyright: ignore[reportMissingImports]

    options = {"region_name": "step", "recompute_state_hooks": (_Stream(),)}
    return torch_remat.checkpoint(**options)(step)


LOOP = step_by_step("the plain loop", lambda step: step)
UNCACHED = step_by_step("the loop that clears autocast's cache", uncached)
PEERS = (
    step_by_step("checkpoint, reentrant", reentrant),
    step_by_step("checkpoint", not_reentrant),
    step_by_step("checkpoint, selective", selective),
    *([step_by_step("torch-remat", rematerialized)] if find_spec("torch_remat") else []),
)


def ours(folder: Path) -> tuple[Way, ...]:
    """Return this library's ways, of which a case's worst outcome counts."""

    def way(name: str, plan: Callable[[int], str | Plan], store: str | Path = "device") -> Way:
        def make(step: Step, num_steps: int, **options: Any) -> Sampler:
            options = {"plan": plan(num_steps), "store": store, **options}
            return CheckpointedChain(step, num_steps, **options)

        return Way(name, make)

    return (
        way("graph", lambda M: "graph"),
        way("nodes", lambda M: "nodes"),
        way("binomial", lambda M: binomial(M, slots=2)),
        way("nodes in a folder", lambda M: "nodes", folder),
        way("a budget", lambda M: "1GiB"),
    )
