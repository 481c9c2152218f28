"""Pairs of a sample and the same sample shifted, drawn as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.directions.draw import Drawn
from hdiscovery.directions.seeds import seeded

Pair = tuple[Tensor, Tensor, Tensor, Tensor]  # x_0, shifted x_0, k, s
Progress = Callable[[range], Iterable[int]]
DRAWN_AT_ONCE = 64


def pairs(
    directions: DirectionSet, count: int, *, seed: int, first: int = 0, batch_size: int = 64,
    progress: Progress = iter,
) -> Iterator[Pair]:  # fmt: skip
    """Yield batches of pairs drawn as in training; torch's global stream stays where it is.

    Args:
        directions: The directions to shift along.
        count: Pairs in all, at least 1. The last batch may be smaller.
        seed: Sets of one run draw the same x_T, k and s from the same seed.
        first: How many of the seed's pairs are passed over.
        batch_size: Pairs at once: memory holds one batch.
        progress: Wraps the loop over batches, as ``tqdm`` does.

    Yields:
        x_0 and shifted x_0 ``[n, C, H, W]``, k and s ``[n]``, without a graph.

    Raises:
        ValueError: If ``count`` or ``batch_size`` is out of range.
    """
    for name, value in (("count", count), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"`{name}` of pairs must be at least 1, got {value}.")
    drawn = draw_apart(directions, first + count, seed)
    for start in progress(range(first, first + count, batch_size)):
        end = min(start + batch_size, first + count)
        x_T, k, s = (column[start:end].to(directions.device) for column in drawn)
        with torch.no_grad():
            yield directions.real(x_T), directions.shifted(x_T, k, s), k, s


def draw_apart(directions: DirectionSet, count: int, seed: int) -> Drawn:
    """Return the first ``count`` triples of a seed, on the CPU; the global stream stays as it was.

    They are drawn block by block: a larger count begins with the triples of a smaller one.
    """
    with seeded(seed):
        blocks = [directions.draw(DRAWN_AT_ONCE) for _ in range(0, count, DRAWN_AT_ONCE)]
    return Drawn(*(torch.cat(column)[:count].cpu() for column in zip(*blocks, strict=True)))
