"""Findings about what the steps do: training layers, noise, changes in place, reruns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from chainograd.errors import CapturedTensorError, ReplayError
from chainograd.preflight.findings import Finding
from chainograd.preflight.rehearsal import ObservedStep, finite
from chainograd.preflight.sites import Site
from chainograd.replay.verify import Verify, compare
from chainograd.state import State
from chainograd.torch_internals import pytree

NO_SITE = Site(None, False)


def in_training(observed_steps: Sequence[ObservedStep]) -> Iterator[Finding]:
    """Yield layers that behave as in training."""
    dropout = {
        name: site for observed in observed_steps for name, site in observed.draws.dropout.items()
    }
    if dropout:
        yield Finding(
            "dropout", None, next(iter(dropout.values())).where,
            f"{_listed(dropout)} applies dropout, so every call of the chain computes something "
            "else. Call `eval()` on the module; its parameters still get gradients.",
        )  # fmt: skip
    batch_norm = {
        name: site
        for observed in observed_steps
        for name, site in observed.draws.batch_norm.items()
    }
    if batch_norm:
        yield Finding(
            "batch norm", None, next(iter(batch_norm.values())).where,
            f"{_listed(batch_norm)} normalises by batch statistics, so samples depend on each "
            "other and running statistics change. Call `eval()` on the module.",
        )  # fmt: skip


def of_noise(observed_steps: Sequence[ObservedStep]) -> Iterator[Finding]:
    """Yield steps that draw from global random streams."""
    for observed in observed_steps:
        site = observed.draws.noise or (NO_SITE if observed.drew_on_host else None)
        if site is not None:
            yield Finding(
                "noise", observed.index, site.where,
                "The step draws from a global random stream. A rerun draws the same numbers, so "
                "the gradient is right, but every call of the chain returns another sample. For "
                "the same sample in every call, seed the stream, or use "
                "`samplers.SeededNoise(seed)(x, i)`.",
            )  # fmt: skip


def in_place(
    observed_steps: Sequence[ObservedStep], again: Sequence[ObservedStep] = ()
) -> Iterator[Finding]:
    """Yield steps that change their state, or that change other tensors in both runs."""
    for observed in observed_steps:
        if observed.changes.entering is not None:
            yield Finding(
                "changed in place", observed.index, observed.changes.entering.where,
                "The step changes its input state in place, but the gradient needs the old "
                "values. Return new tensors: `x = x + …` instead of `x += …`.",
            )  # fmt: skip
    for observed, rerun in zip(observed_steps, again, strict=False):
        for storage in observed.changes.found.keys() & rerun.changes.found.keys():
            site, shape = observed.changes.found[storage]
            yield Finding(
                "changed in place", observed.index, site.where,
                f"The step changes a tensor of shape {tuple(shape)} in place that it did not make: "
                "an argument, a parameter or a buffer. The rerun for the gradient would change it "
                "again. Put it into the state, or make a new tensor.",
            )  # fmt: skip


def refused(observed: ObservedStep) -> Iterator[Finding]:
    """Yield why a run failed, unless a change in place explains it."""
    if isinstance(observed.error, CapturedTensorError):
        yield Finding("captured tensor", observed.index, None, str(observed.error))
    elif observed.error is not None and observed.changes.entering is None:
        yield Finding("refused", observed.index, None, str(observed.error))


def unrepeated(
    observed_steps: Sequence[ObservedStep], again: Sequence[ObservedStep], verify: Verify
) -> Iterator[Finding]:
    """Yield why a rerun differs from the first run, for the first step that differs."""
    pairs = list(zip(observed_steps, again, strict=True))
    for observed, rerun in pairs:
        yield from _unknown_generators(observed, rerun)
    if any(True for _ in in_place(observed_steps, again)):
        return  # the change explains the difference
    for observed, rerun in pairs:
        problem = None if observed.draws.generators else _difference(observed, rerun, verify)
        if problem is not None:
            yield Finding("not repeatable", observed.index, None, problem)
            return


def _unknown_generators(observed: ObservedStep, rerun: ObservedStep) -> Iterator[Finding]:
    for generator, state, site in observed.draws.generators:
        others = [s for g, s, _ in rerun.draws.generators if g is generator]
        if any(not torch.equal(state, other) for other in others):
            yield Finding(
                "unknown generator", observed.index, site.where,
                "The step draws from a `torch.Generator` that the chain does not know. A rerun "
                "draws other noise, so the gradient would be wrong. Name the generator: "
                "`CheckpointedChain(…, generators=[generator])`.",
            )  # fmt: skip


def _difference(observed: ObservedStep, rerun: ObservedStep, verify: Verify) -> str | None:
    """Return how a rerun differs from the first run, or None."""
    if rerun.error is not None:
        return f"A rerun from the same state raised {rerun.error!r}. {_PURE}"
    # Also compared if `verify` turns comparisons off in a run.
    level = "exact" if verify == "exact" else "close"
    try:
        compare(observed.index, observed.leaving.detached().leaves, rerun.leaving.leaves, level)
    except ReplayError as error:
        return str(error)
    return None


_PURE = (
    "A step must be a pure function of its index and its state. Carry what the step remembers in "
    "the state."
)


def not_finite(observed_steps: Sequence[ObservedStep]) -> Iterator[Finding]:
    """Yield the first state that is not finite."""
    if not finite(observed_steps[0].entering):
        yield Finding(
            "not finite", None, None,
            f"`x` {_where_not_finite(observed_steps[0].entering)}. Check how `x` was computed.",
        )  # fmt: skip
        return
    for observed in observed_steps:
        if not finite(observed.leaving):
            yield Finding(
                "not finite", observed.index, None,
                f"The step's result {_where_not_finite(observed.leaving)}. Look for a division by "
                "zero, a root or logarithm of a number that is not positive, or an overflow in "
                "half precision.",
            )  # fmt: skip
            return


def _listed(names: Iterable[str]) -> str:
    first, *others = [f"`{name}`" for name in names]
    return first if not others else f"{first} (and {len(others)} more)"


def _where_not_finite(state: State) -> str:
    """Return which leaf is not finite, and how many of its numbers."""
    paths, _ = pytree.tree_flatten_with_path(state.tree())
    for path, leaf in paths:
        if isinstance(leaf, Tensor) and not bool(torch.isfinite(leaf).all()):
            count = int((~torch.isfinite(leaf)).sum())
            name = f" at {pytree.keystr(path)}" if path else ""
            return f"is not finite{name} in {count} of {leaf.numel()} numbers"
    return "is not finite"
