"""Reconstructor classification accuracy (RCA): how well directions are told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from hdiscovery.train import Discovery

Progress = Callable[[range], Iterable[int]]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """RCA over pairs drawn as in training.

    Attributes:
        pairs: Number of pairs.
        rca: Share of pairs whose k is recognised; chance is 1/K.
        rca_large_shifts: The same for pairs with abs(s) of at least S/10.
        shift_error: Mean abs(s_hat - s); S/2 is what a constant 0 reaches.
        of_direction: Recall of each direction, None where it was never drawn.
    """

    pairs: int
    rca: float
    rca_large_shifts: float
    shift_error: float
    of_direction: list[float | None]


def measure_rca(
    discovery: Discovery,
    *,
    pairs: int,
    batch_size: int = 64,
    seed: int = 1,
    progress: Progress = iter,
) -> Accuracy:
    """Return the RCA over ``pairs`` pairs; the reconstructor uses its running statistics.

    Args:
        discovery: The trained networks.
        pairs: How many to draw, at least 1.
        batch_size: Pairs at once.
        seed: Of the pairs.
        progress: Wraps the loop over batches, as ``tqdm`` does.

    Raises:
        ValueError: If ``pairs`` is out of range.
    """
    if pairs < 1:
        raise ValueError(f"`pairs` must be at least 1, got {pairs}.")
    torch.manual_seed(seed)
    discovery.R.eval()
    found = []
    with torch.no_grad():
        for start in progress(range(0, pairs, batch_size)):
            x_T, k, s = discovery.draw(min(batch_size, pairs - start))
            x_0, shifted = discovery.real(x_T), discovery.shifted(x_T, k, s)
            logits, s_hat = discovery.R(x_0, shifted)
            found.append(torch.stack([k.float(), s, logits.argmax(1).float(), s_hat]))
    discovery.R.train()
    k, s, k_hat, s_hat = torch.cat(found, dim=1)
    right, large = (k == k_hat).float(), s.abs() >= discovery.config.S / 10
    recalls = [right[k == j] for j in range(discovery.config.K)]
    return Accuracy(
        pairs=pairs,
        rca=right.mean().item(),
        rca_large_shifts=right[large].mean().item(),
        shift_error=(s_hat - s).abs().mean().item(),
        of_direction=[r.mean().item() if len(r) else None for r in recalls],
    )
