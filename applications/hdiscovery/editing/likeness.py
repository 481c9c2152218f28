"""How alike direct, mean and global directions are: section 5.4 of the paper, in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hdiscovery.directions.portable import PortableDirections
from hdiscovery.dm.walk import bottlenecks
from hdiscovery.editing.distance import Features, distance
from hdiscovery.editing.editor import edit
from hdiscovery.editing.source import Kind, Source

Progress = Callable[[Iterable], Iterable]


@dataclass(frozen=True, slots=True)
class Cosines:
    """Cosines of one direction at each shifted time; those of samples are means over samples.

    Attributes:
        direct_mean: Of a sample's dh and the mean direction.
        direct_global: Of a sample's dh and the global direction.
        mean_global: Of the mean and the global direction.
    """

    direct_mean: list[float]
    direct_global: list[float]
    mean_global: list[float]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the edits of other directions are from the direct ones, over the size of the edit.

        mean over n, +s and -s of distance(direct, other) / the same of distance(direct, x_0)

    0: the same image. What unrelated directions would give is `another`.

    Attributes:
        size: The size of the direct edit, the divisor.
        mean: Of the mean directions.
        global_: Of the global ones.
        another: Of the direct edit along the direction before this one (the last, for the first).
    """

    size: float
    mean: float
    global_: float
    another: float


def measure_cosines(
    source: Source,
    means: PortableDirections,
    x_T: Tensor,
    grid: Sequence[int],
    *,
    progress: Progress = iter,
) -> list[Cosines]:
    """Return the cosines of each direction.

    Args:
        source: The direct directions.
        means: The means, measured on the steps of ``grid``.
        x_T: Noise of samples that are not those of the means: those are alike by construction.
        grid: The training's times.
        progress: Wraps the loop over steps, as ``tqdm`` does.

    Raises:
        ValueError: If ``means`` has no mean directions.
    """
    if means.mean is None:
        raise ValueError("`means` has no mean directions: measure again without `--no-mean`.")
    K, found = source.about.K, [Cosines([], [], []) for _ in range(source.about.K)]
    steps = bottlenecks(source.dm, x_T, grid, t_stop=source.about.t_stop)
    for i, (t, h, embedding) in enumerate(progress(steps)):
        for k in range(K):
            with torch.no_grad():
                dh = source.directions(h, embedding, torch.full((len(h),), k, device=h.device), t)
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
    sources: Mapping[Kind, Source],
    features: Mapping[str, Features],
    x_T: Tensor,
    x_0: Tensor,
    *,
    strength: float,
    num_steps: int,
    progress: Progress = iter,
) -> list[dict[str, Difference]]:
    """Return the differences of the edited images, for each direction by feature.

    Costs 6 K N samples of ``num_steps`` steps.

    Args:
        sources: All three kinds.
        features: What distances are measured by.
        x_T: Noise of the images, ``[N, C, H, W]``.
        x_0: What it becomes without a shift, the same shape.
        strength: s; images are shifted by both s and -s.
        num_steps: DDIM steps.
        progress: Wraps the loop over directions, as ``tqdm`` does.
    """
    K, s = sources["direct"].about.K, torch.tensor([[strength], [-strength]])
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
    """Return the direction whose global edits are nearest to its direct ones, and the farthest."""
    order = sorted(range(len(differences)), key=lambda k: differences[k].global_)
    return [order[0], order[-1]]


def _cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.flatten(1), b.flatten(1)).mean().item()
