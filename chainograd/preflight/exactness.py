"""Whether the gradient of a chain of a few steps is that of the plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from chainograd.engine.backward import go_back
from chainograd.engine.forward import go_forward
from chainograd.engine.microbatch import SlicedSteps
from chainograd.engine.run import Tape
from chainograd.errors import CapturedTensorError, ChainError, ReplayError
from chainograd.preflight.findings import Finding
from chainograd.preflight.rehearsal import FIRST, Cotangents, Run
from chainograd.replay.rng import Streams
from chainograd.state import differentiable

Prepare = Callable[[int, Any], Tape]


CERTAIN = ("captured tensor", "kept tensor")  # what makes every gradient of the chain wrong


def all_steps(prepare: Prepare, tape: Tape) -> Iterator[Finding]:
    """Yield what the chain refuses in the forward pass, whichever step it is in.

    That is M step evaluations, with one graph at a time that saves nothing.
    """
    whole = prepare(tape.steps.num_steps, tape.x_T.entering(tape.wanted[0]).tree())
    try:
        go_forward(whole, lambda i, state: None)
    except CapturedTensorError as error:
        yield Finding("captured tensor", error.step, None, str(error))
    except ChainError as error:
        yield Finding(
            "refused" if error.step is None else "kept tensor", error.step, None, str(error)
        )
    except Exception:  # in a step that the few runs have not seen: note [Rehearsal], 2
        return
    finally:
        whole.let_go()
    before = {id(tensor) for tensor in tape.steps.captured}
    if whole.steps.outside(whole.used) & ({id(t) for t in whole.steps.captured} - before):
        yield Finding("kept tensor", None, None, _KEPT)


_KEPT = (
    "The step has kept a tensor that it computed: merged weights, an embedding, keys and values. "
    "What it is computed from gets no gradient through steps that run again. Compute it before the "
    "chain and pass it as an argument, or compute it in every step."
)


def inexact(
    prepare: Prepare, tape: Tape, runs: Sequence[Run], back: Cotangents
) -> Iterator[Finding]:
    """Yield how far the chain's gradient is from the plain loop's, if it is another."""
    first = sum(run.index < FIRST for run in runs)
    try:
        chain = prepare(first, tape.x_T.entering(tape.wanted[0]).tree())
        ours = _by_the_chain(chain, back.given, runs[0].random)
    except ChainError as error:
        kind = "not repeatable" if isinstance(error, ReplayError) else "refused"
        yield Finding(kind, None, None, str(error))
        return
    # What is merely left of the rehearsal, as features that a hook keeps, is not compared.
    count = len(chain.steps.captured)
    of_captured = zip(chain.steps.captured, ours[len(ours) - count :], strict=True)
    gradients = {id(tensor): g for tensor, g in of_captured}
    ours = ours[: len(ours) - count] + [gradients.get(id(t)) for t in tape.steps.captured]
    tolerance = _tolerance(chain)
    worst, place = 0.0, 0
    for k, (g, h) in enumerate(zip(ours, back.inputs, strict=True)):
        off = _apart(g, h)
        if off > max(tolerance, worst):
            worst, place = off, k
    if worst:
        shape = tuple(tape.inputs[place].shape)
        yield Finding(
            "not exact", None, None,
            f"The chain's gradient for a tensor of shape {shape} is not that of the plain loop: "
            f"{worst:.2g} of its size apart. Look for what the backward pass of a step does "
            "differently from run to run: a counter that detaches, a hook, noise in a custom "
            "autograd function.",
        )  # fmt: skip


def _by_the_chain(tape: Tape, given: list[Tensor | None], random: Streams) -> list[Tensor | None]:
    """Return the gradients of a tape's inputs as the chain computes them."""
    tape.streams.set(random)
    go_forward(tape, lambda i, state: None)
    cotangents = {place: g for place, g in enumerate(given) if g is not None}
    return go_back(tape, cotangents, keep=False)


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


def _tolerance(tape: Tape) -> float:
    """Return how far apart gradients may be: not at all, where the chain promises bits."""
    dtypes = [t.dtype for t in (*tape.inputs, *tape.x_T.tensors) if differentiable(t)]
    dtypes += [autocast.dtype for autocast in tape.surroundings.autocast if autocast.enabled]
    same_kernels = not isinstance(tape.steps, SlicedSteps)
    on_cpu = all(t.device.type == "cpu" for t in (*tape.inputs, *tape.x_T.tensors))
    if tape.store.dtype is None and same_kernels and on_cpu and tape.verify == "exact":
        return 0.0
    dtypes += [tape.store.dtype] if tape.store.dtype is not None else []
    # Rounding grows along the steps by what they amplify it, which is not known.
    return max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
