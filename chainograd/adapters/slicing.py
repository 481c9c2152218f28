"""Whether a sampler's loop may be cut into its steps: found out on a toy beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chainograd.replay.rng import RNGSources, fork_rng

CARRY = "Write a step that carries it in its state: `step((x, memory), i) -> (x, memory)`."

Model = Callable[..., Tensor]


def try_in_slices(
    name: str,
    whole: Callable[[Model, Tensor, Tensor], Tensor],
    cut: Callable[[Model, Tensor], Callable[[Tensor, int], Tensor]],
    sigmas: Tensor,
) -> None:
    """Check that steps give what the loop gives that they were cut from, and record gradients.

    The toy is a denoiser of six numbers, so that this takes milliseconds. It is bent (a sine),
    so that a step that remembers anything, or looks further than its two sigmas, gives itself
    away. Random noise is the same for both, and the caller's random streams are left alone.

    Args:
        name: The sampler's, for messages.
        whole: ``whole(model, x, sigmas) -> x``, the loop.
        cut: ``cut(model, sigmas)`` returns the step of that loop, ``step(x, i) -> x``.
        sigmas: ``[M + 1]``, those that will be used.

    Raises:
        ValueError: If the two do not agree to the bit, or if the loop turns gradients off.
    """
    recorded = []

    def toy(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        recorded.append(torch.is_grad_enabled())
        return torch.sin(3 * x) / (1 + sigma.view(-1, 1))

    sigmas = sigmas.detach().cpu()
    x = sigmas[0] * torch.linspace(-1, 1, 6, dtype=sigmas.dtype, device="cpu").view(2, 3)
    rng = RNGSources(())
    try:
        with torch.enable_grad(), fork_rng(rng):
            start = rng.state()
            expected = whole(toy, x, sigmas)
            rng.set(start)
            step = cut(toy, sigmas)
            for i in range(len(sigmas) - 1):
                x = step(x, i)
    except Exception as error:
        raise ValueError(
            f"`fn` {name} could not be tried on two sigmas at a time with a toy denoiser "
            f"({type(error).__name__}: {error}). Only a sampler that needs nothing but "
            "`model(x, sigma)` and two sigmas for a step can be used; write another as a step of "
            "its own."
        ) from error
    if not all(recorded):
        raise ValueError(
            f"`fn` {name} turns gradients off inside. Pass the function under its decorators, or a "
            "copy without `no_grad`."
        )
    if not torch.equal(x, expected):
        raise ValueError(
            f"`fn` {name} gives another result on two sigmas at a time than in one run, "
            f"{float((x - expected).abs().max()):.2g} apart on a toy: it remembers earlier steps, "
            f"or looks at other sigmas than its two. {CARRY}"
        )
