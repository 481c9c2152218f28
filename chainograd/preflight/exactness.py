"""Compares the gradient of a chain of a few steps with the plain loop's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from chainograd.engine.backward import run_backward
from chainograd.engine.forward import run_forward
from chainograd.engine.microbatch import SlicedStep
from chainograd.engine.run import Run
from chainograd.errors import CapturedTensorError, ChainError, ReplayError
from chainograd.preflight.findings import Finding
from chainograd.preflight.rehearsal import FIRST, ObservedStep
from chainograd.preflight.send_back import Cotangents
from chainograd.replay.rng import RNGState
from chainograd.state import differentiable

Prepare = Callable[[int, Any], Run]


CERTAIN = ("captured tensor", "kept tensor")  # kinds that make every gradient wrong


def all_steps(prepare: Prepare, run: Run) -> Iterator[Finding]:
    """Yield what the chain refuses in the forward pass, in any of its steps.

    This takes M step evaluations, with one graph at a time, which saves no tensors.
    """
    whole = prepare(run.step.num_steps, run.x_T.entering(run.first_pass.wanted[0]).tree())
    try:
        run_forward(whole)
    except CapturedTensorError as error:
        yield Finding("captured tensor", error.step, None, str(error))
    except ChainError as error:
        yield Finding(
            "refused" if error.step is None else "kept tensor", error.step, None, str(error)
        )
    except Exception:  # in a step that was not observed: note [Rehearsal], 2
        return
    finally:
        whole.release()
    before = {id(tensor) for tensor in run.shared.captured}
    if whole.shared.ids(whole.first_pass.used) & ({id(t) for t in whole.shared.captured} - before):
        yield Finding("kept tensor", None, None, _KEPT)


_KEPT = (
    "The step keeps a tensor that it computed, such as merged weights, an embedding, or keys and "
    "values. The tensors that it was computed from get no gradient through steps that run again. "
    "Compute it before the chain and pass it as an argument, or compute it in every step."
)


def inexact(
    prepare: Prepare, run: Run, observed_steps: Sequence[ObservedStep], back: Cotangents
) -> Iterator[Finding]:
    """Yield the input whose gradient differs most from the plain loop's, if any differs."""
    first = sum(observed.index < FIRST for observed in observed_steps)
    try:
        chain = prepare(first, run.x_T.entering(run.first_pass.wanted[0]).tree())
        ours = _by_the_chain(chain, back.given, observed_steps[0].random)
    except ChainError as error:
        kind = "not repeatable" if isinstance(error, ReplayError) else "refused"
        yield Finding(kind, None, None, str(error))
        return
    worst, place = _worst(_in_order(ours, chain, run), back.inputs, _tolerance(chain))
    if worst:
        shape = tuple(run.inputs.tensors[place].shape)
        yield Finding(
            "not exact", None, None,
            f"The chain's gradient for a tensor of shape {shape} differs from the plain loop's "
            f"(relative error {worst:.2g}). Look for a part of the step's backward pass that "
            "differs from run to run: a counter that detaches, a hook, or noise in a custom "
            "autograd function.",
        )  # fmt: skip


def _in_order(ours: list[Tensor | None], chain: Run, run: Run) -> list[Tensor | None]:
    """Return the chain's gradients in the order of the inputs of ``run``.

    The chain may capture other tensors than ``run``: a hook in a step may have kept features of the
    rehearsal. Their gradients are left out.
    """
    count = len(ours) - len(chain.shared.captured)
    of_captured = zip(chain.shared.captured, ours[count:], strict=True)
    gradients = {id(tensor): g for tensor, g in of_captured}
    return ours[:count] + [gradients.get(id(tensor)) for tensor in run.shared.captured]


def _worst(
    ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None], tolerance: float
) -> tuple[float, int]:
    """Return the largest error above the tolerance, or 0, and the input that has it."""
    worst, place = 0.0, 0
    for k, (g, h) in enumerate(zip(ours, theirs, strict=True)):
        error = _error(g, h)
        if error > max(tolerance, worst):
            worst, place = error, k
    return worst, place


def _by_the_chain(run: Run, given: list[Tensor | None], random: RNGState) -> list[Tensor | None]:
    """Return the gradients of a run's inputs as the chain computes them."""
    run.surroundings.rng.set(random)
    run_forward(run)
    cotangents = {place: g for place, g in enumerate(given) if g is not None}
    return run_backward(run, cotangents, keep=False)


def _error(a: Tensor | None, b: Tensor | None) -> float:
    """Return the error of ``a`` relative to ``b``; None counts as zero."""
    if a is None or b is None:
        return float(any(g is not None and bool(g.any()) for g in (a, b)))
    if torch.equal(a, b):
        return 0.0
    off, size = _norm(a - b), _norm(b)
    return off / size if size else float("inf")


def _norm(tensor: Tensor) -> float:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(tensor, dtype=wide))


def _tolerance(run: Run) -> float:
    """Return the largest relative error that is allowed: 0 if the chain promises equal bits."""
    dtypes = [t.dtype for t in (*run.inputs.tensors, *run.x_T.tensors) if differentiable(t)]
    dtypes += [autocast.dtype for autocast in run.surroundings.context.autocast if autocast.enabled]
    store = run.options.store
    same_kernels = not isinstance(run.step, SlicedStep)
    on_cpu = all(t.device.type == "cpu" for t in (*run.inputs.tensors, *run.x_T.tensors))
    if store.dtype is None and same_kernels and on_cpu and run.options.verify == "exact":
        return 0.0
    dtypes += [store.dtype] if store.dtype is not None else []
    # The steps amplify rounding errors by an unknown factor.
    return max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
