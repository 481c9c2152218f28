"""Whether the gradient of a chain of a few steps is that of the plain loop."""

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
from chainograd.preflight.rehearsal import FIRST, Cotangents, ObservedStep
from chainograd.replay.rng import RNGState
from chainograd.state import differentiable

Prepare = Callable[[int, Any], Run]


CERTAIN = ("captured tensor", "kept tensor")  # what makes every gradient of the chain wrong


def all_steps(prepare: Prepare, run: Run) -> Iterator[Finding]:
    """Yield what the chain refuses in the forward pass, whichever step it is in.

    That is M step evaluations, with one graph at a time that saves nothing.
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
    except Exception:  # in a step that the few runs have not seen: note [Rehearsal], 2
        return
    finally:
        whole.release()
    before = {id(tensor) for tensor in run.shared.captured}
    if whole.shared.ids(whole.first_pass.used) & ({id(t) for t in whole.shared.captured} - before):
        yield Finding("kept tensor", None, None, _KEPT)


_KEPT = (
    "The step has kept a tensor that it computed: merged weights, an embedding, keys and values. "
    "What it is computed from gets no gradient through steps that run again. Compute it before the "
    "chain and pass it as an argument, or compute it in every step."
)


def inexact(
    prepare: Prepare, run: Run, observed_steps: Sequence[ObservedStep], back: Cotangents
) -> Iterator[Finding]:
    """Yield how far the chain's gradient is from the plain loop's, if it is another."""
    first = sum(observed.index < FIRST for observed in observed_steps)
    try:
        chain = prepare(first, run.x_T.entering(run.first_pass.wanted[0]).tree())
        ours = _by_the_chain(chain, back.given, observed_steps[0].random)
    except ChainError as error:
        kind = "not repeatable" if isinstance(error, ReplayError) else "refused"
        yield Finding(kind, None, None, str(error))
        return
    # What is merely left of the rehearsal, as features that a hook keeps, is not compared.
    count = len(chain.shared.captured)
    of_captured = zip(chain.shared.captured, ours[len(ours) - count :], strict=True)
    gradients = {id(tensor): g for tensor, g in of_captured}
    ours = ours[: len(ours) - count] + [gradients.get(id(t)) for t in run.shared.captured]
    tolerance = _tolerance(chain)
    worst, place = 0.0, 0
    for k, (g, h) in enumerate(zip(ours, back.inputs, strict=True)):
        off = _apart(g, h)
        if off > max(tolerance, worst):
            worst, place = off, k
    if worst:
        shape = tuple(run.inputs.tensors[place].shape)
        yield Finding(
            "not exact", None, None,
            f"The chain's gradient for a tensor of shape {shape} is not that of the plain loop: "
            f"{worst:.2g} of its size apart. Look for what the backward pass of a step does "
            "differently from run to run: a counter that detaches, a hook, noise in a custom "
            "autograd function.",
        )  # fmt: skip


def _by_the_chain(run: Run, given: list[Tensor | None], random: RNGState) -> list[Tensor | None]:
    """Return the gradients of a run's inputs as the chain computes them."""
    run.surroundings.rng.set(random)
    run_forward(run)
    cotangents = {place: g for place, g in enumerate(given) if g is not None}
    return run_backward(run, cotangents, keep=False)


def _apart(a: Tensor | None, b: Tensor | None) -> float:
    """Return how far two gradients are apart, relative to their size; None is zero."""
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
    """Return how far apart gradients may be: not at all, where the chain promises bits."""
    dtypes = [t.dtype for t in (*run.inputs.tensors, *run.x_T.tensors) if differentiable(t)]
    dtypes += [autocast.dtype for autocast in run.surroundings.context.autocast if autocast.enabled]
    store = run.options.store
    same_kernels = not isinstance(run.step, SlicedStep)
    on_cpu = all(t.device.type == "cpu" for t in (*run.inputs.tensors, *run.x_T.tensors))
    if store.dtype is None and same_kernels and on_cpu and run.options.verify == "exact":
        return 0.0
    dtypes += [store.dtype] if store.dtype is not None else []
    # Rounding grows along the steps by what they amplify it, which is not known.
    return max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
