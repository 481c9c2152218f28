"""What a chain refuses: tensors it cannot see, slices that are not the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from chainograd.captured import Witness
from chainograd.errors import CapturedTensorError, ChainError
from chainograd.slices import SlicedSteps, difference, influence
from chainograd.states import State, differentiable
from chainograd.streams import undisturbed
from chainograd.surroundings import autocast_as
from chainograd.tape import Tape


def run_without_gradient(tape: Tape, states: dict[int, State] | None = None) -> State:
    """Run a chain in which nothing is known to need a gradient, and see that it is so.

    Args:
        tape: The chain.
        states: Filled with every state that a step gives, by its index.

    Returns:
        The last state.

    Raises:
        CapturedTensorError: If something does.
    """
    state = tape.x_T
    for i in range(tape.plan.num_steps):

        def refuse(tensor: Tensor, i: int = i) -> None:
            # Nothing made under no_grad requires a gradient: leaf or not, it is captured.
            raise CapturedTensorError(
                f"Step {i} uses a tensor of shape {tuple(tensor.shape)} that requires a "
                "gradient and that the chain cannot see. Name it, "
                "`CheckpointedChain(…, params=[tensor])`, or run the chain under "
                "`torch.no_grad()` if its gradient is not wanted."
            )

        with autocast_as(tape.autocast), Witness(refuse), torch.no_grad():
            state = tape.steps.run(i, state)
        if states is not None:
            states[i + 1] = state
    return state


def refuse_kept(tape: Tape) -> None:
    """See that step 1 uses nothing that step 0 computed and kept: note [Kept tensors].

    Raises:
        ChainError: If it does.
    """
    state = tape.x_T
    with torch.no_grad(), undisturbed(tape.streams), tape.surroundings():
        try:
            for i in range(min(2, tape.plan.num_steps)):
                if tape.passes(i):
                    state, _ = tape.steps.tried(i, state, tape.wanted(i, state), tape.look)
                else:
                    state = tape.steps.advance(i, state)
        except ChainError:
            raise
        except Exception:
            return  # it will come again, where there is more to say of it


def compare_slices(tape: Tape, steps: SlicedSteps) -> None:
    """See that every step gives slices of a batch what it gives the batch.

    Raises:
        ChainError: If it does not.
    """
    if steps.batch <= steps.size or any(isinstance(t, FakeTensor) for t in tape.x_T.tensors):
        return
    dtypes = [t.dtype for t in tape.x_T.tensors if differentiable(t)]
    dtypes += [autocast.dtype for autocast in tape.autocast if autocast.enabled]
    room = min(10 * max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5, 0.1)
    before = tape.streams.state()
    with undisturbed(tape.streams), tape.surroundings():
        off, i = difference(steps, tape.x_T, room)
        if tape.streams.state(before) is not before:
            # Noise is drawn slice by slice, so only the use of other samples can be seen.
            off, i = influence(steps, tape.x_T, room, lambda: tape.streams.set(before))
    if off:
        raise ChainError(
            f"`micro_batch={steps.size}` gives another chain: step {i} gives two slices another "
            f"result one by one than together, {off:.2g} of their size apart. Either samples "
            "see each other (batch norm in training: call `eval()`), or a table with as many "
            "rows as the batch has samples was cut with it (hand it over as `table[None]`), or "
            "noise that is a function of the step is the same for all slices (pass it as an "
            "argument of the chain, one entry a sample, so that it is cut)."
        )
