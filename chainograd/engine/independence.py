"""What a chain refuses: tensors it cannot see, slices that are not the batch."""

from __future__ import annotations

import torch

from chainograd.engine.microbatch import SlicedSteps, difference, influence
from chainograd.engine.run import Run
from chainograd.errors import ChainError
from chainograd.plans.plan import RUNS, Advance
from chainograd.state import differentiable
from chainograd.torch_internals.modes import is_fake


def compare_slices(run: Run, steps: SlicedSteps) -> None:
    """See that every step gives slices of a batch what it gives the batch.

    Raises:
        ChainError: If it does not.
    """
    if steps.batch <= steps.size or any(is_fake(t) for t in run.x_T.tensors):
        return
    dtypes = [t.dtype for t in run.x_T.tensors if differentiable(t)]
    dtypes += [cast.dtype for cast in run.context.autocast if cast.enabled]
    room = min(10 * max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5, 0.1)
    before = run.rng.state()
    off, i = difference(steps, run.x_T, room)
    if run.rng.state(before) is not before:
        # Noise is drawn slice by slice, so only the use of other samples can be seen.
        off, i = influence(steps, run.x_T, room, lambda: run.rng.set(before))
    if off:
        raise ChainError(
            f"`micro_batch={steps.size}` gives another chain: step {i} gives two slices another "
            f"result one by one than together, {off:.2g} of their size apart. Either samples "
            "see each other (batch norm in training: call `eval()`), or a table with as many "
            "rows as the batch has samples was cut with it (hand it over as `table[None]`), or "
            "noise that is a function of the step is the same for all slices (pass it as an "
            "argument of the chain, one entry a sample, so that it is cut)."
        )


def refuse_counted_passes(run: Run, *, planned: bool) -> None:
    """See that hooks which pair forward and backward passes see as many of both.

    Args:
        run: The chain.
        planned: Whether the plan is the caller's, and no step runs but as it says.

    Raises:
        ChainError: If a step would run forward more often than back.
    """
    if run.counts_passes is None or not run.inputs:
        return
    again = any(type(action) in RUNS for action in run.plan.backward)
    light = any(type(a) is Advance and run.passes(a.index) for a in run.plan.forward)
    if again or light or not planned:
        raise ChainError(
            f"The steps use a {run.counts_passes}, whose hooks pair each forward pass with a "
            "backward pass (per-sample gradients), but this chain runs steps forward more often "
            "than back. Pass `plan='graph'`, which runs each step once, without `micro_batch`."
        )
