"""Rank directions without labels, and write ``ranking.json``, which the gallery reads.

``ranking.json`` in a run's folder, best direction first:

    {
      "format": "hdiscovery-ranking-1",
      "step": 3000,                       training steps behind the ranked checkpoint
      "K": 32, "S": 5.0,
      "samples": 16,                      samples that every direction was applied to
      "shifts": [-5.0, …, 0.0, …, 5.0],   shifts of every sample
      "seed": 1,
      "features": {"name": …, "sha256": …},   the net behind consistency, fidelity and effect
      "directions": [
        {
          "k": 7,                         index of the direction, from 0
          "score": 0.71,                  in [0, 1]; the directions are sorted by falling score
          "accuracy": 0.98,               in [0, 1]
          "monotonicity": 0.95,           in [-1, 1]
          "smoothness": 0.97,             in [0, 1]
          "consistency": 0.41,            in [-1, 1]
          "fidelity": 0.88,               in [0, 1]
          "effect": 0.32,                 at least 0; 1: as different as two unrelated samples
          "redundancy": 0.0,              in [0, 1]; 0 for a direction that is not a twin
          "twin_of": null                 or [k, sign]: a better direction with the same effect
        }, …                              (sign 1) or the opposite effect (sign -1)
      ]
    }

Every number is finite. `Ranked` defines each mark and the score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.evaluation.features import FeatureNet
from hdiscovery.evaluation.marks import Manifold, deepest, marks_of
from hdiscovery.evaluation.redundancy import cosines, shift_cosines, stronger, twins
from hdiscovery.evaluation.sweep import Sweep

FORMAT = "hdiscovery-ranking-1"
MARKS = ("accuracy", "monotonicity", "smoothness", "consistency", "fidelity", "effect")
FULL_EFFECT = 0.25  # of the distance between unrelated samples; a larger effect scores no more
FLOOR = 0.01  # without it, one mark of 0 would make the scores of all bad directions equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One direction's marks. x_n(s) is sample n shifted by s, phi(x) are its deepest features.

    Attributes:
        k: The direction.
        score: g (1 - redundancy), where g is the geometric mean of accuracy, monotonicity,
            smoothness, consistency, fidelity and min(1, effect / 0.25); each counts as at least
            0.01. A high score needs all of them at once, like a mark of the paper's assessors.
        accuracy: Share of the pairs x_n(0), x_n(s) whose k the reconstructor recognises.
        monotonicity: Spearman's correlation of predicted and true shift along a sample's sweep,
            averaged over samples.
        smoothness: H(p) / ln(m - 1), averaged over samples, where p_j is step j's share of the
            total change, |x_n(s_{j+1}) - x_n(s_j)|, and H is the entropy. 1: even steps; 0: one
            jump.
        consistency: Mean cosine between two samples' changes phi(x_n(S)) - phi(x_n(-S)).
        fidelity: Share of the shifted samples that lie where unshifted samples do: closer to some
            reference sample than the third neighbour of that reference (the precision of
            Kynkaanniemi et al., 2019). It is divided by the same share of unshifted samples and
            is at most 1.
        effect: Mean of |phi(x_n(S)) - phi(x_n(-S))|, divided by the mean distance of two
            unrelated samples.
        redundancy: abs(c) for a twin, 0 for any other direction. c is a cosine of two directions:
            of their mean dh, or of the changes they make to the same images, whichever is larger
            in absolute value.
        twin_of: The better direction of which this is a twin (abs(c) is at least 0.9), and the
            sign of c.
    """

    k: int
    score: float
    accuracy: float
    monotonicity: float
    smoothness: float
    consistency: float
    fidelity: float
    effect: float
    redundancy: float = 0.0
    twin_of: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """All directions, best first, and the settings of the ranking."""

    K: int
    S: float
    samples: int
    shifts: list[float]
    seed: int
    features: dict[str, Any]
    directions: list[Ranked]

    def mean(self) -> dict[str, float]:
        """Return each mark and the score, averaged over directions, and the number of twins."""
        rows = self.directions
        means = {m: math.fsum(getattr(r, m) for r in rows) / len(rows) for m in (*MARKS, "score")}
        return {**means, "twins": sum(r.twin_of is not None for r in rows)}

    def content(self, step: int) -> dict[str, Any]:
        """Return the content of ``ranking.json`` for a checkpoint after ``step`` steps."""
        return {"format": FORMAT, "step": step, **asdict(self)}


def rank(
    subject: DirectionSet,
    R: nn.Module,
    net: FeatureNet,
    found: Iterable[Sweep],
    *,
    references: int = 128,
    threshold: float = 0.9,
    seed: int = 2,
    batch_size: int = 64,
) -> Ranking:
    """Rank a subject's directions without labels; see `Ranked`.

    Args:
        subject: The subject whose directions are ranked.
        R: A reconstructor trained on these directions: the run's own or a fresh one.
        net: The feature net.
        found: The `sweeps` of all directions.
        references: Unshifted samples that fidelity and effect are measured against, at least 5.
        threshold: Smallest abs(cosine) of twins.
        seed: Seed of the sweeps; the references take ``seed + 1``.
        batch_size: Images at once.

    Raises:
        ValueError: If a number is out of range.
    """
    if references < 5:
        raise ValueError(f"`references` must be at least 5, got {references}.")
    manifold = Manifold.of(deepest(net, subject.samples(references, seed=seed + 1), batch_size))
    was_training = R.training
    R.eval()
    marked: list[Ranked] = []
    changes: list[Tensor] = []
    shifts, N = [0.0], 0
    for sweep in found:
        marked.append(ranked(sweep.k, marks_of(sweep, R, net, manifold, batch_size)))
        changes.append(F.adaptive_avg_pool2d(sweep.change, 32).flatten().cpu())
        shifts, N = sweep.s.tolist(), len(sweep.x)
    R.train(was_training)
    of_shifts = shift_cosines(subject, num_samples=N, seed=seed)
    similarity = stronger(of_shifts, cosines(torch.stack(changes)).float())
    return Ranking(
        K=subject.K,
        S=subject.S,
        samples=N,
        shifts=shifts,
        seed=seed,
        features=net.described(),
        directions=merge(marked, similarity, threshold=threshold),
    )


def ranked(k: int, marks: Mapping[str, float]) -> Ranked:
    """Return a direction with its score, before twins are searched for."""
    total = score(**marks)
    return Ranked(
        k=k, score=total, accuracy=marks["accuracy"], monotonicity=marks["monotonicity"],
        smoothness=marks["smoothness"], consistency=marks["consistency"],
        fidelity=marks["fidelity"], effect=marks["effect"],
    )  # fmt: skip


def score(
    *, accuracy: float, monotonicity: float, smoothness: float, consistency: float,
    fidelity: float, effect: float,
) -> float:  # fmt: skip
    """Return the score of a direction that is not a twin; see `Ranked`.

    Example:
        >>> score(accuracy=1, monotonicity=1, smoothness=1, consistency=1, fidelity=1, effect=9)
        1.0
    """
    marks = (accuracy, monotonicity, smoothness, consistency, fidelity, effect / FULL_EFFECT)
    counted = [min(max(mark, FLOOR), 1.0) for mark in marks]
    return math.exp(math.fsum(map(math.log, counted)) / len(counted))


def merge(marked: list[Ranked], similarity: Tensor, *, threshold: float = 0.9) -> list[Ranked]:
    """Return the directions, best first, with lower scores for twins of better directions."""
    ordered = sorted(marked, key=lambda r: (-r.score, r.k))
    found = twins(similarity, [r.k for r in ordered], threshold=threshold)
    final = []
    for r in ordered:
        if r.k in found:
            of, sign, c = found[r.k]
            r = replace(r, redundancy=c, twin_of=(of, sign), score=r.score * (1 - c))
        final.append(r)
    return sorted(final, key=lambda r: (-r.score, r.k))
