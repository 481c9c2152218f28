"""What adapters refuse alike: an index outside the sampler, noise levels that are none."""

from __future__ import annotations

from torch import Tensor


def checked_index(i: int, num_steps: int) -> int:
    """Return ``i`` if the sampler has such a step.

    Raises:
        IndexError: If it has not. (An empty slice, or one counted from the end, is another step.)
    """
    if not 0 <= i < num_steps:
        raise IndexError(
            f"Step {i} was asked for of a sampler with {num_steps} steps: make the chain "
            "`step.num_steps` long."
        )
    return i


def checked_sigmas(sigmas: Tensor) -> Tensor:
    """Return ``sigmas`` if it is a vector of at least two numbers.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is no vector, or a shorter one.
    """
    if not isinstance(sigmas, Tensor):
        raise TypeError(
            f"`sigmas` must be a tensor, got {sigmas!r}: pass `torch.tensor(sigmas)`, on the "
            "device of the states."
        )
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(
            "`sigmas` must be a vector of at least two noise levels, one more than there are "
            f"steps, got shape {tuple(sigmas.shape)}."
        )
    return sigmas
