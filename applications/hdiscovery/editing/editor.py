"""Edit the images of given noise along several directions, at many strengths in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hdiscovery.directions.direction_set import DirectionSet

Progress = Callable[[range], Iterable[int]]


def edit(
    directions: DirectionSet,
    x_T: Tensor,
    k: Sequence[int],
    s: Tensor,
    *,
    num_steps: int,
    gain: float | None = None,
    batch_size: int = 32,
    progress: Progress = iter,
) -> Tensor:
    """Return edited images, without a graph.

        h_hat = h + gain sum_j s_j f_t(h, k_j)              gain = M / num_steps by default

    Every shifted step adds the shift's full effect on P to the image, even if the step is short.
    Without the gain, a direction trained with M steps would be num_steps / M times too strong.

    Args:
        directions: The directions.
        x_T: Noise of the images, ``[N, C, H, W]``, on the directions' device.
        k: The n directions, counted from 0.
        s: Strengths of the n directions in each of the E edits, ``[E, n]``. Every edit is applied
            to every image.
        num_steps: DDIM steps.
        gain: Factor on all strengths. With 1, each step is shifted as in training.
        batch_size: Images at once.
        progress: Wraps the loop over batches, as ``tqdm`` does.

    Returns:
        ``[N, E, C, H, W]``, not clamped.

    Raises:
        ValueError: If a direction does not exist, ``s`` does not fit, or a number is too small.

    References:
        Kwon et al. (2022), Diffusion Models Already Have a Semantic Latent Space, for the gain.
    """
    _refuse(k, s, batch_size, K=directions.K)
    gain = directions.M / num_steps if gain is None else gain
    sampler = replace(directions.sampler, M=num_steps, precision="off")
    step = sampler.step(directions.dm, directions.f).eval()

    N, E = len(x_T), len(s)
    all_x = x_T.repeat_interleave(E, 0)
    all_s = (gain * s.to(x_T)).repeat(N, 1)
    all_k = torch.tensor(list(k), device=x_T.device).expand(N * E, -1)
    parts = []
    with torch.no_grad():
        for start in progress(range(0, N * E, batch_size)):
            x, k_x, s_x = (part[start : start + batch_size] for part in (all_x, all_k, all_s))
            for i in range(num_steps):
                x = step(x, i, k_x, s_x)
            parts.append(x)
    return torch.cat(parts).view(N, E, *x_T.shape[1:])


def _refuse(k: Sequence[int], s: Tensor, batch_size: int, *, K: int) -> None:
    unknown = [j for j in k if not 0 <= j < K]
    if unknown:
        raise ValueError(
            f"Direction {unknown[0]} in `k` does not exist. The directions are 0 … {K - 1}."
        )
    if s.ndim != 2 or s.shape[1] != len(k):
        raise ValueError(
            f"`s` must be [E, {len(k)}], one strength for each of the {len(k)} directions in `k`, "
            f"got {list(s.shape)}."
        )
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
