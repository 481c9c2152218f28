"""A sampler's loop cut into single steps: checks of indices and noise levels, and a trial run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainograd.replay.rng import RNGSources, fork_rng

CARRY = "Write a step that carries it in its state: `step((x, memory), i) -> (x, memory)`."

Model = Callable[..., Tensor]


def checked_index(i: int, num_steps: int) -> int:
    """Return ``i`` if the sampler has a step ``i``.

    Raises:
        IndexError: If it has not. Slicing would not fail: it would return another step.
    """
    if not 0 <= i < num_steps:
        raise IndexError(
            f"Step {i} does not exist in a sampler with {num_steps} steps. Make the chain "
            "`step.num_steps` long."
        )
    return i


def checked_sigmas(sigmas: Tensor) -> Tensor:
    """Return ``sigmas`` if it is a vector of at least two numbers.

    Raises:
        TypeError: If ``sigmas`` is not a tensor.
        ValueError: If ``sigmas`` is not a vector, or has fewer than two numbers.
    """
    if not isinstance(sigmas, Tensor):
        raise TypeError(
            f"`sigmas` must be a tensor, got {sigmas!r}. Pass `torch.tensor(sigmas)`, on the "
            "device of the states."
        )
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(
            "`sigmas` must be a vector of at least two noise levels, one more than the number of "
            f"steps, got shape {tuple(sigmas.shape)}."
        )
    return sigmas


def try_in_slices(
    name: str,
    whole: Callable[[Model, Tensor, Tensor], Tensor],
    cut: Callable[[Model, Tensor], Callable[[Tensor, int], Tensor]],
    sigmas: Tensor,
) -> None:
    """Check that single steps return what the whole loop returns, and that they record gradients.

    The check takes milliseconds: the model is a toy denoiser of six numbers. The toy is nonlinear
    (a sine), so a step that remembers anything, or that reads more than its two sigmas, returns
    another result. Both runs draw the same random numbers. The caller's random streams do not move.

    Args:
        name: The sampler's name, for errors.
        whole: ``whole(model, x, sigmas) -> x``, the loop.
        cut: ``cut(model, sigmas)`` returns the step of that loop, ``step(x, i) -> x``.
        sigmas: ``[M + 1]``, the noise levels that will be used.

    Raises:
        ValueError: If steps and loop differ in any bit, or if the loop turns gradients off.
    """
    recorded: list[bool] = []

    def toy(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        recorded.append(torch.is_grad_enabled())
        return torch.sin(3 * x) / (1 + sigma.view(-1, 1))

    sigmas = sigmas.detach().cpu()
    try:
        x, expected = _both_ways(toy, whole, cut, sigmas)
    except Exception as error:
        raise ValueError(
            f"`fn` {name} could not be tried on two sigmas at a time with a toy denoiser "
            f"({type(error).__name__}: {error}). A sampler can be cut into steps only if a step "
            "needs nothing but `model(x, sigma)` and two sigmas. Write this sampler as your own "
            "step."
        ) from error
    if not all(recorded):
        raise ValueError(
            f"`fn` {name} turns gradients off inside. Pass the function without its decorators, or "
            "a copy without `no_grad`."
        )
    if not torch.equal(x, expected):
        raise ValueError(
            f"`fn` {name} returns another result on two sigmas at a time than in one run (largest "
            f"difference {float((x - expected).abs().max()):.2g} on a toy denoiser). It remembers "
            f"earlier steps, or reads more than two sigmas in a step. {CARRY}"
        )


def _both_ways(
    toy: Model,
    whole: Callable[[Model, Tensor, Tensor], Tensor],
    cut: Callable[[Model, Tensor], Callable[[Tensor, int], Tensor]],
    sigmas: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the toy's result step by step, and in one run."""
    x = sigmas[0] * torch.linspace(-1, 1, 6, dtype=sigmas.dtype, device="cpu").view(2, 3)
    rng = RNGSources(())
    with torch.enable_grad(), fork_rng(rng):
        start = rng.state()
        expected = whole(toy, x, sigmas)
        rng.set(start)
        step = cut(toy, sigmas)
        for i in range(len(sigmas) - 1):
            x = step(x, i)
    return x, expected
