"""What the runs of a rehearsal say about a chain, as findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from chainograd.errors import CapturedTensorError, ReplayError
from chainograd.preflight.findings import Finding, Kind
from chainograd.preflight.observers import Detach, DetachTracker
from chainograd.preflight.rehearsal import Cotangents, ObservedStep, finite
from chainograd.preflight.sites import Site
from chainograd.replay.verify import Verify, compare
from chainograd.state import State, wants_gradient
from chainograd.torch_internals import pytree

NO_SITE = Site(None, False)


def in_training(observed_steps: Sequence[ObservedStep]) -> Iterator[Finding]:
    """Yield what layers do only in training."""
    dropout = {
        name: site for observed in observed_steps for name, site in observed.draws.dropout.items()
    }
    if dropout:
        yield Finding(
            "dropout", None, next(iter(dropout.values())).where,
            f"{_listed(dropout)} drops out, so every call is another network. Call `eval()` on it; "
            "its parameters get their gradients all the same.",
        )  # fmt: skip
    batch_norm = {
        name: site
        for observed in observed_steps
        for name, site in observed.draws.batch_norm.items()
    }
    if batch_norm:
        yield Finding(
            "batch norm", None, next(iter(batch_norm.values())).where,
            f"{_listed(batch_norm)} normalises by the batch it is given, so samples depend on each "
            "other and statistics move. Call `eval()` on it.",
        )  # fmt: skip


def of_noise(observed_steps: Sequence[ObservedStep]) -> Iterator[Finding]:
    """Yield where steps draw from global random streams."""
    for observed in observed_steps:
        site = observed.draws.noise or (NO_SITE if observed.drew_on_host else None)
        if site is not None:
            yield Finding(
                "noise", observed.index, site.where,
                "Draws from a global random stream. A rerun draws the same numbers, so the "
                "gradient is right, but every call gives another sample. To repeat one, seed the "
                "stream or a named generator; for noise that is a value, take "
                "`samplers.SeededNoise(seed)(x, i)` or an argument.",
            )  # fmt: skip


def in_place(
    observed_steps: Sequence[ObservedStep], again: Sequence[ObservedStep] = ()
) -> Iterator[Finding]:
    """Yield where steps change what was there before: in one run the state, in both the rest."""
    for observed in observed_steps:
        if observed.changes.entering is not None:
            yield Finding(
                "changed in place", observed.index, observed.changes.entering.where,
                "Changes the state it was given, which the gradient needs again. Return new "
                "tensors: `x = x + …` instead of `x += …`.",
            )  # fmt: skip
    for observed, rerun in zip(observed_steps, again, strict=False):
        for storage in observed.changes.found.keys() & rerun.changes.found.keys():
            site, shape = observed.changes.found[storage]
            yield Finding(
                "changed in place", observed.index, site.where,
                f"Changes a tensor of shape {tuple(shape)} that is not its own: an argument, a "
                "parameter, a buffer. The rerun for the gradient changes it once more. Carry it in "
                "the state, or make a new tensor.",
            )  # fmt: skip


def refused(observed: ObservedStep) -> Iterator[Finding]:
    """Yield why a run failed, if that is not said by what it changed."""
    if isinstance(observed.error, CapturedTensorError):
        yield Finding("captured tensor", observed.index, None, str(observed.error))
    elif observed.error is not None and observed.changes.entering is None:
        yield Finding("refused", observed.index, None, str(observed.error))


def unrepeated(
    observed_steps: Sequence[ObservedStep], again: Sequence[ObservedStep], verify: Verify
) -> Iterator[Finding]:
    """Yield why a step that runs again does not do the same; of steps that differ, the first."""
    for observed, rerun in zip(observed_steps, again, strict=True):
        for generator, state, site in observed.draws.generators:
            others = [s for g, s, _ in rerun.draws.generators if g is generator]
            if any(not torch.equal(state, other) for other in others):
                yield Finding(
                    "unknown generator", observed.index, site.where,
                    "Draws from a `torch.Generator` that the chain does not know: run again, the "
                    "step draws other noise, and the gradient would be that of another chain. Name "
                    "it: `CheckpointedChain(…, generators=[generator])`.",
                )  # fmt: skip
    explained = any(True for _ in in_place(observed_steps, again))
    for observed, rerun in zip(observed_steps, again, strict=True):
        if explained or observed.draws.generators:
            continue
        if rerun.error is not None:
            problem = f"Run again from the same state it raised {rerun.error!r}. {_PURE}"
            yield Finding("not repeatable", observed.index, None, problem)
            return
        try:
            # What is never compared in a run is compared here.
            level = "exact" if verify == "exact" else "close"
            compare(observed.index, observed.leaving.detached().leaves, rerun.leaving.leaves, level)
        except ReplayError as error:
            yield Finding("not repeatable", observed.index, None, str(error))
            return


_PURE = (
    "A step must be a pure function of its index and its state: carry what it remembers in the "
    "state."
)


def not_finite(observed_steps: Sequence[ObservedStep]) -> Iterator[Finding]:
    """Yield where numbers first are not finite."""
    if not finite(observed_steps[0].entering):
        yield Finding(
            "not finite", None, None,
            f"`x` {_where_not_finite(observed_steps[0].entering)}. Look at where it was made.",
        )  # fmt: skip
        return
    for observed in observed_steps:
        if not finite(observed.leaving):
            yield Finding(
                "not finite", observed.index, None,
                f"The state it gives {_where_not_finite(observed.leaving)}. Look for a division by "
                "zero, a root or logarithm of what is not positive, a half precision overflow.",
            )  # fmt: skip
            return


def cut_off(observed_steps: Sequence[ObservedStep], trainable: bool) -> Iterator[Finding]:
    """Yield where states are cut off from the gradient.

    Args:
        observed_steps: The runs.
        trainable: Whether steps use something that requires a gradient.
    """
    lost = False
    for observed in observed_steps:
        expected = trainable or any(map(wants_gradient, observed.entering.leaves))
        cuts = [observed.cuts.of(leaf) for leaf in observed.leaving.tensors]
        cut = next((cut for cut in cuts if cut is not None), observed.cuts.last)
        if not any(map(wants_gradient, observed.leaving.leaves)):
            if expected and (cut is not None or any(map(wants_gradient, observed.entering.leaves))):
                lost = True
                yield without_gradient("What the step gives", cut, observed.index)
            continue
        whole = [
            cut
            for cut, leaf in zip(cuts, observed.leaving.tensors, strict=True)
            if cut is not None and (cut.site.direct or not leaf.requires_grad)
        ]
        for cut in whole:
            yield _partly(cut, observed.index)
        if observed.cuts.number is not None:
            yield _number(observed.cuts.number, observed.index)
    if not lost and not any(map(wants_gradient, observed_steps[-1].leaving.leaves)):
        yield Finding(
            "no gradient", None, None,
            "What these steps give has no gradient, though there is something to train. If no "
            "other step uses it, see that it is used.",
        )  # fmt: skip


def cut_off_in_the_loss(value: Any, cuts: DetachTracker) -> Iterator[Finding]:
    """Yield where a loss is cut off from the gradient."""
    if not wants_gradient(value):
        cut = (cuts.of(value) if isinstance(value, Tensor) else None) or cuts.last
        yield without_gradient("The loss", cut, None)
        return
    cut = cuts.of(value)
    if cut is not None and cut.site.direct:
        yield _partly(cut, None)
    if cuts.number is not None:
        yield _number(cuts.number, None)


def of_cotangents(observed_steps: Sequence[ObservedStep], back: Cotangents) -> Iterator[Finding]:
    """Yield where the gradient ends on its way back, or is not finite any more."""
    end = back.nodes[-1]
    if all(g is None for g in end):
        yield Finding(
            "no gradient", None, None,
            "The loss has a gradient, but not with regard to the state. See that it is computed "
            "from it, with nothing detached in between.",
        )  # fmt: skip
        return
    if _all_zero(end):
        yield Finding("gradient dies", None, None, f"The gradient of the loss {_ZERO}")
        return
    if not _finite(end):
        yield Finding("not finite", None, None, f"The gradient of the loss {_INFINITE}")
        return
    for observed, before in zip(reversed(observed_steps), reversed(back.nodes[:-1]), strict=True):
        if not any(map(wants_gradient, observed.entering.leaves)):
            return
        if all(g is None for g in before):
            yield _no_way_through(observed)
            return
        if _all_zero(before):
            yield Finding("gradient dies", observed.index, None, f"The gradient behind it {_ZERO}")
            return
        if not _finite(before):
            yield Finding("not finite", observed.index, None, f"The gradient behind it {_INFINITE}")
            return


_ZERO = (
    "is zero everywhere. Look for a clamp or a threshold that all numbers are beyond, and for "
    "rounding (`clip_sample=True` of a scheduler, for one)."
)
_INFINITE = (
    "is not finite. Look for a root or a norm at zero and for `where` with a branch that is not "
    "finite; add an epsilon inside the root."
)
_OFF = (
    "with gradients turned off (`no_grad` or `inference_mode`). Take the block or the decorator "
    "away; what was decorated has the bare function as `__wrapped__`."
)
_DETACHED = (
    "detached (`.detach()`, `.data`, a number or an array, `autograd.grad` without "
    "`create_graph=True`). Compute on with the tensor itself."
)


def without_gradient(what: str, cut: Detach | None, step: int | None) -> Finding:
    """Return what is said of something that has no gradient, and of the cut behind it."""
    if cut is None:
        return Finding(
            "no gradient", step, None,
            f"{what} has no gradient. See that it is computed by torch, in floating point, from "
            "the state and from what is to be trained.",
        )  # fmt: skip
    how = f"computed {_OFF}" if cut.kind == "gradients off" else _DETACHED
    return Finding(cut.kind, step, cut.site.where, f"{what} has no gradient: it is {how}")


def _partly(cut: Detach, step: int | None) -> Finding:
    how = "computed with gradients off" if cut.kind == "gradients off" else "detached"
    return Finding(
        "partly detached", step, cut.site.where,
        f"A part of the outcome is {how} here, and its share of the gradient is left out, in the "
        "plain loop too. If that is not meant, take it away.",
    )  # fmt: skip


def _number(site: Site, step: int | None) -> Finding:
    return Finding(
        "partly detached", step, site.where,
        "A number is taken out of a tensor that has a gradient. If it goes into the outcome, "
        "compute on with the tensor; if it is only looked at, `.detach()` it first.",
    )  # fmt: skip


def _no_way_through(observed: ObservedStep) -> Finding:
    cut = next(filter(None, map(observed.cuts.of, observed.leaving.tensors)), observed.cuts.last)
    kind: Kind = "no gradient" if cut is None else cut.kind
    return Finding(
        kind, observed.index, None if cut is None else cut.site.where,
        "No gradient passes from the state that leaves the step to the one that enters it, so all "
        "steps before it get none. Compute the one from the other, with nothing detached or under "
        "`no_grad` in between; if this is meant, `grad_steps=1` says so and costs less.",
    )  # fmt: skip


def _listed(names: Iterable[str]) -> str:
    first, *others = [f"`{name}`" for name in names]
    return first if not others else f"{first} (and {len(others)} more)"


def _where_not_finite(state: State) -> str:
    """Return which leaf is not finite, and how much of it."""
    paths, _ = pytree.tree_flatten_with_path(state.tree())
    for path, leaf in paths:
        if isinstance(leaf, Tensor) and not bool(torch.isfinite(leaf).all()):
            count = int((~torch.isfinite(leaf)).sum())
            name = f" at {pytree.keystr(path)}" if path else ""
            return f"is not finite{name} in {count} of {leaf.numel()} numbers"
    return "is not finite"


def _all_zero(cotangents: Sequence[Tensor | None]) -> bool:
    return all(g is None or not bool(g.any()) for g in cotangents)


def _finite(cotangents: Sequence[Tensor | None]) -> bool:
    return all(g is None or bool(torch.isfinite(g).all()) for g in cotangents)
