"""Reconstructor classification accuracy (RCA): how often a reconstructor recognises k."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.directions.pairs import Pair, Progress
from hdiscovery.directions.pairs import pairs as draw_pairs


@dataclass(frozen=True, slots=True)
class Accuracy:
    """RCA over pairs drawn as in training.

    Attributes:
        pairs: Number of pairs.
        rca: Share of pairs whose k is recognised; chance is 1/K.
        rca_large_shifts: RCA over pairs with abs(s) of at least S/10; None without such pairs.
        shift_error: Mean abs(s_hat - s); a constant s_hat = 0 reaches S/2.
        of_direction: Recall of each direction; None for a direction that was not drawn.
        standard_error: Standard error of ``rca``, from the number of pairs alone.
        curve: RCA as a function of abs(s). Each of ten intervals of [0, S] has ``from``, ``to``,
            the number of ``pairs``, and their ``rca`` and ``shift_error`` (None without pairs).
    """

    pairs: int
    rca: float
    rca_large_shifts: float | None
    shift_error: float
    of_direction: list[float | None]
    standard_error: float = math.nan
    curve: list[dict[str, Any]] = field(default_factory=list)


def measure_rca(
    directions: DirectionSet,
    *,
    pairs: int,
    batch_size: int = 64,
    seed: int = 1,
    progress: Progress = iter,
) -> Accuracy:
    """Return the RCA of directions by the reconstructor that was trained with them.

    Args:
        directions: The directions.
        pairs: Number of pairs to draw, at least 1; the paper takes 5,000.
        batch_size: Pairs at once.
        seed: Seed of the pairs.
        progress: Wraps the loop over batches, as ``tqdm`` does.

    Raises:
        ValueError: If ``pairs`` is out of range, or the directions have no reconstructor.
    """
    if pairs < 1:
        raise ValueError(f"`pairs` must be at least 1, got {pairs}.")
    if directions.R is None:
        raise ValueError(
            f"RCA needs a reconstructor, and none was trained with the directions "
            f"{directions.name!r}. Measure them with a fresh one (`--only fresh`)."
        )
    drawn = draw_pairs(directions, pairs, seed=seed, batch_size=batch_size, progress=progress)
    return accuracy(directions.R, drawn, K=directions.K, S=directions.S)


def accuracy(R: nn.Module, drawn: Iterable[Pair], *, K: int, S: float) -> Accuracy:
    """Return the accuracy of a reconstructor on pairs, with R in eval mode.

    Args:
        R: A module from x_0 and shifted x_0 to logits ``[n, K]`` and shifts ``[n]``.
        drawn: Batches of pairs.
        K: Number of directions.
        S: Largest shift.
    """
    was_training = R.training
    R.eval()
    found = []
    with torch.no_grad():
        for x_0, shifted, k, s in drawn:
            logits, s_hat = R(x_0, shifted)
            found.append(torch.stack([k.to(s), s, logits.argmax(1).to(s), s_hat.to(s)]).cpu())
    R.train(was_training)
    k, s, k_hat, s_hat = torch.cat(found, dim=1)
    right, error = (k == k_hat).float(), (s_hat - s).abs()
    rca = right.mean().item()
    return Accuracy(
        pairs=len(k),
        rca=rca,
        rca_large_shifts=_mean(right[s.abs() >= S / 10]),
        shift_error=error.mean().item(),
        of_direction=[_mean(right[k == j]) for j in range(K)],
        standard_error=math.sqrt(rca * (1 - rca) / len(k)),
        curve=_curve(s.abs() / S, right, error, S),
    )


def _curve(relative: Tensor, right: Tensor, error: Tensor, S: float) -> list[dict[str, Any]]:
    tenth = (relative * 10).floor().clamp(max=9)
    points = []
    for i in range(10):
        inside = tenth == i
        points.append(
            {
                "from": S * i / 10,
                "to": S * (i + 1) / 10,
                "pairs": int(inside.sum()),
                "rca": _mean(right[inside]),
                "shift_error": _mean(error[inside]),
            }
        )
    return points


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None
