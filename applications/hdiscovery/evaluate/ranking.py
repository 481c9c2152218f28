"""Rank directions without labels, and write the order down for whoever shows them.

``ranking.json`` in a run's folder, best direction first:

    {
      "format": "hdiscovery-ranking-1",
      "step": 3000,                       training steps behind the ranked checkpoint
      "K": 32, "S": 5.0,
      "samples": 16,                      samples that every direction was tried on
      "shifts": [-5.0, …, 0.0, …, 5.0],   shifts that every sample was given
      "seed": 1,
      "features": {"name": …, "sha256": …},   the net behind consistency, fidelity and effect
      "directions": [
        {
          "k": 7,                         index of the direction, from 0
          "score": 0.71,                  in [0, 1]; the directions are sorted by it, falling
          "accuracy": 0.98,               in [0, 1]
          "monotonicity": 0.95,           in [-1, 1]
          "smoothness": 0.97,             in [0, 1]
          "consistency": 0.41,            in [-1, 1]
          "fidelity": 0.88,               in [0, 1]
          "effect": 0.32,                 at least 0; 1: as different as two unrelated samples
          "redundancy": 0.0,              in [0, 1]; 0 for a direction that is nobody's twin
          "twin_of": null                 or [k, sign]: a better direction that does the same
        }, …                              (sign 1) or the opposite (sign -1)
      ]
    }

Every number is finite. What each measures and how the score is made of them: `Ranked`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdiscovery.directions.subject import Subject, samples
from hdiscovery.evaluate.features import FeatureNet
from hdiscovery.evaluate.marks import Manifold, deepest, marks_of
from hdiscovery.evaluate.redundancy import cosines, shift_cosines, stronger, twins
from hdiscovery.evaluate.sweep import Sweep

FORMAT = "hdiscovery-ranking-1"
MARKS = ("accuracy", "monotonicity", "smoothness", "consistency", "fidelity", "effect")
FULL_EFFECT = 0.25  # of the distance of unrelated samples: a direction that moves as far is enough
FLOOR = 0.01  # so that one bad mark does not make all of the worst equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One direction's marks. x_n(s) is sample n under shift s, phi the deepest features of it.

    Attributes:
        k: The direction.
        score: g (1 - redundancy), where g is the geometric mean of accuracy, monotonicity,
            smoothness, consistency, fidelity and min(1, effect / 0.25), none of them counted as
            less than 0.01. It asks for all of them at once, as the paper's assessors are asked to.
        accuracy: Share of the pairs x_n(0), x_n(s) whose k the reconstructor recognises.
        monotonicity: Spearman's correlation of predicted and true shift along a sample's sweep,
            mean over samples.
        smoothness: H(p) / ln(m - 1), where p_j is the share of step j in the way that the image
            makes, |x_n(s_{j+1}) - x_n(s_j)|; mean over samples. 1: even steps; 0: one jump.
        consistency: Mean cosine of phi(x_n(S)) - phi(x_n(-S)) between two samples.
        fidelity: Share of the shifted samples that lie among unshifted ones: phi is within the
            distance of a reference sample to its third neighbour, of any (the precision of
            Kynkaanniemi et al., 2019). Relative to that share of unshifted samples, at most 1.
        effect: Mean of |phi(x_n(S)) - phi(x_n(-S))|, relative to the mean distance of two
            unrelated samples.
        redundancy: abs(c) of a twin, 0 of others; c is the cosine of two directions' mean dh or
            that of the changes they make to the same images, whichever is further from 0.
        twin_of: The better direction it is a twin of (abs(c) of at least 0.9) and c's sign.
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
    """All directions, best first, and what they were tried on."""

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
        """Return what ``ranking.json`` holds, of a checkpoint after ``step`` training steps."""
        return {"format": FORMAT, "step": step, **asdict(self)}


def rank(
    subject: Subject,
    R: nn.Module,
    net: FeatureNet,
    found: Iterable[Sweep],
    *,
    references: int = 128,
    threshold: float = 0.9,
    seed: int = 2,
    batch_size: int = 64,
) -> Ranking:
    """Rank a subject's directions without a label; see `Ranked`.

    Args:
        subject: Whose directions.
        R: A reconstructor that knows them: their own or a fresh one.
        net: What looks at the images.
        found: Their `sweeps`, each direction's once.
        references: Unshifted samples that fidelity and effect are measured against, at least 5.
        threshold: Least abs(cosine) of twins.
        seed: That of the sweeps; the references' is the next.
        batch_size: Images at once.

    Raises:
        ValueError: If a number is out of range.
    """
    if references < 5:
        raise ValueError(f"`references` must be at least 5, got {references}.")
    manifold = Manifold.of(deepest(net, samples(subject, references, seed=seed + 1), batch_size))
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
    """Return a direction with its score; it is nobody's twin yet."""
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
    """Return the score of a direction that is nobody's twin; see `Ranked`.

    Example:
        >>> score(accuracy=1, monotonicity=1, smoothness=1, consistency=1, fidelity=1, effect=9)
        1.0
    """
    marks = (accuracy, monotonicity, smoothness, consistency, fidelity, effect / FULL_EFFECT)
    counted = [min(max(mark, FLOOR), 1.0) for mark in marks]
    return math.exp(math.fsum(map(math.log, counted)) / len(counted))


def merge(marked: list[Ranked], similarity: Tensor, *, threshold: float = 0.9) -> list[Ranked]:
    """Return directions sorted, best first, with twins of better ones marked down as such."""
    ordered = sorted(marked, key=lambda r: (-r.score, r.k))
    found = twins(similarity, [r.k for r in ordered], threshold=threshold)
    final = []
    for r in ordered:
        if r.k in found:
            of, sign, c = found[r.k]
            r = replace(r, redundancy=c, twin_of=(of, sign), score=r.score * (1 - c))
        final.append(r)
    return sorted(final, key=lambda r: (-r.score, r.k))
