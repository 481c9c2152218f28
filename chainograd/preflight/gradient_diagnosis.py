"""Findings about gradients: where they are cut off, vanish, or are not finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from chainograd.preflight.detach_tracker import Detach, DetachTracker
from chainograd.preflight.findings import Finding, FindingKind
from chainograd.preflight.rehearsal import ObservedStep
from chainograd.preflight.send_back import Cotangents
from chainograd.preflight.sites import Site
from chainograd.state import wants_gradient


def cut_off(observed_steps: Sequence[ObservedStep], trainable: bool) -> Iterator[Finding]:
    """Yield where the gradient of a state is cut off.

    Args:
        observed_steps: The runs.
        trainable: Whether steps use a tensor that requires a gradient.
    """
    lost = False
    for observed in observed_steps:
        if any(map(wants_gradient, observed.leaving.leaves)):
            yield from _cut_off_in_part(observed)
            continue
        cut, entering = _cut(observed), any(map(wants_gradient, observed.entering.leaves))
        if entering or (trainable and cut is not None):
            lost = True
            yield without_gradient("The step's result", cut, observed.index)
    if not lost and not any(map(wants_gradient, observed_steps[-1].leaving.leaves)):
        yield Finding(
            "no gradient", None, None,
            "The result of these steps has no gradient, although the chain has something to "
            "train. If no other step uses it, use it in a step.",
        )  # fmt: skip


def _cut_off_in_part(observed: ObservedStep) -> Iterator[Finding]:
    for leaf in observed.leaving.tensors:
        cut = observed.cuts.of(leaf)
        if cut is not None and (cut.site.direct or not leaf.requires_grad):
            yield _partly(cut, observed.index)
    if observed.cuts.number is not None:
        yield _number(observed.cuts.number, observed.index)


def _cut(observed: ObservedStep) -> Detach | None:
    """Return where a leaf of the result lost its gradient, or else the last cut in the step."""
    return next(filter(None, map(observed.cuts.of, observed.leaving.tensors)), observed.cuts.last)


def cut_off_in_the_loss(value: Any, cuts: DetachTracker) -> Iterator[Finding]:
    """Yield where the gradient of a loss is cut off."""
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
    """Yield where the gradient ends in the backward pass, or stops being finite."""
    end = back.nodes[-1]
    if all(g is None for g in end):
        yield Finding(
            "no gradient", None, None,
            "The loss has a gradient, but not with respect to the state. Compute the loss from the "
            "state, with nothing detached in between.",
        )  # fmt: skip
        return
    problem = _problem("The gradient of the loss", None, end)
    if problem is not None:
        yield problem
        return
    for observed, before in zip(reversed(observed_steps), reversed(back.nodes[:-1]), strict=True):
        if not any(map(wants_gradient, observed.entering.leaves)):
            return
        if all(g is None for g in before):
            yield _no_way_through(observed)
            return
        problem = _problem("The gradient of the state that enters the step", observed.index, before)
        if problem is not None:
            yield problem
            return


def _problem(what: str, step: int | None, cotangents: Sequence[Tensor | None]) -> Finding | None:
    if _all_zero(cotangents):
        return Finding("gradient dies", step, None, f"{what} {_ZERO}")
    if not _finite(cotangents):
        return Finding("not finite", step, None, f"{what} {_INFINITE}")
    return None


_ZERO = (
    "is zero everywhere. Look for a clamp or a threshold that all numbers exceed, such as a "
    "scheduler's `clip_sample=True`, and for rounding to integers."
)
_INFINITE = (
    "is not finite. Look for a root or a norm at zero, and for `where` with a branch that is not "
    "finite. Add an epsilon inside the root."
)
_OFF = (
    "with gradients turned off (`no_grad` or `inference_mode`). Remove the block or the decorator; "
    "a decorated function has the bare function as `__wrapped__`."
)
_DETACHED = (
    "detached (by `.detach()`, `.data`, a number or an array, or `autograd.grad` without "
    "`create_graph=True`). Compute with the tensor itself."
)


def without_gradient(what: str, cut: Detach | None, step: int | None) -> Finding:
    """Return the finding about a tensor without a gradient, which it lost at ``cut`` if known."""
    if cut is None:
        return Finding(
            "no gradient", step, None,
            f"{what} has no gradient. Compute it with torch, in floating point, from the state and "
            "from the tensors to be trained.",
        )  # fmt: skip
    how = f"computed {_OFF}" if cut.kind == "gradients off" else _DETACHED
    return Finding(cut.kind, step, cut.site.where, f"{what} has no gradient: it is {how}")


def _partly(cut: Detach, step: int | None) -> Finding:
    how = "computed with gradients off" if cut.kind == "gradients off" else "detached"
    return Finding(
        "partly detached", step, cut.site.where,
        f"A part of the result is {how} here, so its share of the gradient is missing, in the "
        "plain loop too. If that is not meant, compute this part with gradients.",
    )  # fmt: skip


def _number(site: Site, step: int | None) -> Finding:
    return Finding(
        "partly detached", step, site.where,
        "A number is read from a tensor that has a gradient. If it enters the result, compute with "
        "the tensor instead. If it is only looked at, `.detach()` the tensor first.",
    )  # fmt: skip


def _no_way_through(observed: ObservedStep) -> Finding:
    cut = _cut(observed)
    kind: FindingKind = "no gradient" if cut is None else cut.kind
    return Finding(
        kind, observed.index, None if cut is None else cut.site.where,
        "No gradient passes from the step's result to the state that enters the step, so all "
        "earlier steps get no gradient. Compute the result from that state, with nothing detached "
        "or under `no_grad` in between. If this is meant, `grad_steps=1` says so and costs less.",
    )  # fmt: skip


def _all_zero(cotangents: Sequence[Tensor | None]) -> bool:
    return all(g is None or not bool(g.any()) for g in cotangents)


def _finite(cotangents: Sequence[Tensor | None]) -> bool:
    return all(g is None or bool(torch.isfinite(g).all()) for g in cotangents)
