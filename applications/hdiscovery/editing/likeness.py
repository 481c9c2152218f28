"""How similar direct, mean and global directions are: section 5.4 of the paper, measured.

A *direct* direction computes dh from each sample's h. A *mean* direction is its average over
samples, one for each step. A *global* direction is the average of the mean ones over steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hdiscovery.directions.direction_set import DirectionSet, Kind
from hdiscovery.directions.portable import PortableDirections
from hdiscovery.dm.walk import bottlenecks
from hdiscovery.editing.distance import Features, distance
from hdiscovery.editing.editor import edit

Progress = Callable[[Iterable], Iterable]


@dataclass(frozen=True, slots=True)
class Cosines:
    """Cosines of one direction at each shifted time, averaged over samples.

    Attributes:
        direct_mean: Cosine of a sample's dh and the mean direction.
        direct_global: Cosine of a sample's dh and the global direction.
        mean_global: Cosine of the mean and the global direction.
    """

    direct_mean: list[float]
    direct_global: list[float]
    mean_global: list[float]


@dataclass(frozen=True, slots=True)
class Difference:
    """The distance of other edits from the direct edit, divided by the size of the direct edit.

        mean of distance(direct, other) / mean of distance(direct, x_0)

    Both means are over n, +s and -s. 0 means equal images. `another` shows the value for an
    unrelated direction.

    Attributes:
        size: Size of the direct edit, the divisor.
        mean: Difference of the edit along the mean direction.
        global_: Difference of the edit along the global direction.
        another: Difference of the direct edit along the direction before this one (for the first
            direction, the last).
    """

    size: float
    mean: float
    global_: float
    another: float


def measure_cosines(
    directions: DirectionSet,
    means: PortableDirections,
    x_T: Tensor,
    grid: Sequence[int],
    *,
    progress: Progress = iter,
) -> list[Cosines]:
    """Return the cosines of each direction.

    Args:
        directions: The direct directions.
        means: The mean directions, measured on the steps of ``grid``.
        x_T: Noise of samples. Use other samples than the means were taken over, because a mean is
            similar to its own samples by construction.
        grid: The training's times.
        progress: Wraps the loop over steps, as ``tqdm`` does.

    Raises:
        ValueError: If ``means`` has no mean directions.
    """
    if means.mean is None:
        raise ValueError(
            "`means` has no mean directions: it was measured with `--no-mean`. Measure again "
            "without it."
        )
    K, found = directions.K, [Cosines([], [], []) for _ in range(directions.K)]
    steps = bottlenecks(directions.dm, x_T, grid, t_stop=directions.t_stop)
    for i, (t, h, embedding) in enumerate(progress(steps)):
        for k in range(K):
            with torch.no_grad():
                dh = directions.f(h, embedding, torch.full((len(h),), k, device=h.device), t)
            mean, global_ = (x.to(dh)[None] for x in (means.mean[k, i], means.global_[k]))
            found[k].direct_mean.append(_cosine(dh, mean))
            found[k].direct_global.append(_cosine(dh, global_))
            found[k].mean_global.append(_cosine(mean, global_))
    return found


def between_directions(global_: Tensor) -> float:
    """Return the mean abs(cosine) of two different global directions, ``[K, C, H, W]``."""
    unit = F.normalize(global_.float().flatten(1), dim=1)
    K = len(unit)
    return ((unit @ unit.T).abs().sum() - K).item() / (K * (K - 1))


def measure_differences(
    sources: Mapping[Kind, DirectionSet],
    features: Mapping[str, Features],
    x_T: Tensor,
    x_0: Tensor,
    *,
    strength: float,
    num_steps: int,
    progress: Progress = iter,
) -> list[dict[str, Difference]]:
    """Return the differences of the edited images: for each direction, one per kind of features.

    Costs 6 K N samples of ``num_steps`` steps.

    Args:
        sources: The direct, mean and global directions.
        features: Features that distances compare, by name.
        x_T: Noise of the images, ``[N, C, H, W]``.
        x_0: The unshifted images of ``x_T``, the same shape.
        strength: s; images are shifted by both s and -s.
        num_steps: DDIM steps.
        progress: Wraps the loop over directions, as ``tqdm`` does.
    """
    K, s = sources["direct"].K, torch.tensor([[strength], [-strength]])
    x_0 = x_0.repeat_interleave(2, 0)

    def edited(kind: Kind, k: int) -> Tensor:
        return edit(sources[kind], x_T, [k], s, num_steps=num_steps).flatten(0, 1)

    def compared(feature: Features, direct: Tensor, others: Sequence[Tensor]) -> Difference:
        size = distance(feature, direct, x_0).mean().item()
        apart = [distance(feature, direct, other).mean().item() for other in others]
        return Difference(size, *(value / size if size else 0.0 for value in apart))

    found, before = [], edited("direct", K - 1)
    for k in progress(range(K)):
        direct = edited("direct", k)
        others = (edited("mean", k), edited("global", k), before)
        found.append({name: compared(of, direct, others) for name, of in features.items()})
        before = direct
    return found


def most_and_least_alike(differences: Sequence[Difference]) -> list[int]:
    """Return the directions whose global edit is most and least similar to the direct edit."""
    order = sorted(range(len(differences)), key=lambda k: differences[k].global_)
    return [order[0], order[-1]]


def _cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.flatten(1), b.flatten(1)).mean().item()
