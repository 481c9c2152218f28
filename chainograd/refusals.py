"""What a chain refuses: tensors it cannot see, slices that are not the batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from chainograd.errors import ChainError
from chainograd.slices import SlicedSteps, difference, influence
from chainograd.states import differentiable
from chainograd.tape import Tape


def refuse_step(step: object, num_steps: object) -> None:
    """See that a step can be called, and how often.

    Raises:
        TypeError: If it cannot be called.
        ValueError: If ``num_steps`` is no number of steps.
    """
    if not callable(step):
        raise TypeError(f"`step` must be callable as step(x, i, …), got {type(step).__name__}.")
    if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
        raise ValueError(f"`num_steps` must be an integer of at least 1, got {num_steps!r}.")


def as_params(params: Iterable[Tensor]) -> list[Tensor]:
    """Return ``params`` as a list.

    Raises:
        TypeError: If they are no tensors.
    """
    if isinstance(params, Tensor):
        raise TypeError("`params` is a list of tensors, got one tensor: pass `params=[tensor]`.")
    listed = list(params)
    for value in listed:
        if not isinstance(value, Tensor):
            raise TypeError(f"`params` must hold tensors, got {type(value).__name__}.")
    return listed


def refuse_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """See that an option is one of its choices.

    Raises:
        ValueError: If it is not.
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")


def refuse_progress(progress: bool) -> None:
    """See that bars can be shown if they are wanted.

    Raises:
        ImportError: If they cannot.
    """
    if progress and importlib.util.find_spec("tqdm") is None:
        raise ImportError("`progress=True` shows its bars with tqdm: `pip install tqdm`.")


def refuse_micro_batch(micro_batch: object) -> None:
    """See that ``micro_batch`` is a number of samples, or None.

    Raises:
        ValueError: If it is not.
    """
    if micro_batch is not None and (
        not isinstance(micro_batch, int) or isinstance(micro_batch, bool) or micro_batch < 1
    ):
        raise ValueError(
            f"`micro_batch` must be a number of samples of at least 1, or None, got "
            f"{micro_batch!r}."
        )


def compare_slices(tape: Tape, steps: SlicedSteps) -> None:
    """See that every step gives slices of a batch what it gives the batch.

    Raises:
        ChainError: If it does not.
    """
    if steps.batch <= steps.size or any(isinstance(t, FakeTensor) for t in tape.x_T.tensors):
        return
    dtypes = [t.dtype for t in tape.x_T.tensors if differentiable(t)]
    dtypes += [cast.dtype for cast in tape.surroundings.autocast if cast.enabled]
    room = min(10 * max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5, 0.1)
    before = tape.streams.state()
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
