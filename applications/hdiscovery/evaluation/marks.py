"""The marks of one direction; `hdiscovery.evaluation.ranking.Ranked` defines each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdiscovery.evaluation.features import FeatureNet
from hdiscovery.evaluation.sweep import Sweep


def marks_of(
    sweep: Sweep, R: nn.Module, net: FeatureNet, manifold: Manifold, batch_size: int = 64
) -> dict[str, float]:
    """Return one direction's marks by name; `Ranked` defines each of them.

    Args:
        sweep: Samples shifted along the direction.
        R: A reconstructor trained on the directions, in eval mode.
        net: The feature net.
        manifold: Where unshifted samples lie in feature space.
        batch_size: Images at once.
    """
    N, m = sweep.x.shape[:2]
    x_0 = sweep.unshifted[:, None].expand_as(sweep.x).flatten(0, 1)
    with torch.no_grad():
        parts = zip(x_0.split(batch_size), sweep.x.flatten(0, 1).split(batch_size), strict=True)
        logits, s_hat = (torch.cat(part) for part in zip(*(R(*p) for p in parts), strict=True))
    shifted = sweep.s != 0
    phi = deepest(net, sweep.x.flatten(0, 1), batch_size).view(N, m, -1)
    change = phi[:, -1] - phi[:, 0]
    return {
        "accuracy": (logits.argmax(1) == sweep.k).view(N, m)[:, shifted].float().mean().item(),
        "monotonicity": monotonicity(sweep.s, s_hat.view(N, m)),
        "smoothness": smoothness(sweep.x),
        "consistency": consistency(change),
        "fidelity": manifold.fidelity(phi[:, shifted].flatten(0, 1)),
        "effect": (change.norm(dim=1).mean() / manifold.spread).item(),
    }


def monotonicity(s: Tensor, s_hat: Tensor) -> float:
    """Return Spearman's correlation of ``s_hat [N, m]`` with ``s [m]``, averaged over samples.

    A constant row counts as 0.
    """
    from torchmetrics.functional import spearman_corrcoef

    rows = s_hat.float().cpu()
    target = s.float().cpu()
    values = [
        spearman_corrcoef(row, target).item() if bool((row != row[0]).any()) else 0.0
        for row in rows
    ]
    return math.fsum(values) / len(values)


def smoothness(x: Tensor) -> float:
    """Return how even the steps of ``x [N, m, …]`` along m are; see `Ranked`. No change is 0."""
    step = (x[:, 1:] - x[:, :-1]).flatten(2).norm(dim=2).double()
    p = step / step.sum(1, keepdim=True).clamp_min(1e-300)
    entropy = -torch.special.xlogy(p, p).sum(1)
    return min((entropy / math.log(step.shape[1])).mean().item(), 1.0)


def consistency(change: Tensor) -> float:
    """Return the mean cosine of two different rows of ``[N, F]``; with a zero row it is 0."""
    unit = F.normalize(change.double(), dim=1)
    N = len(unit)
    alone = unit.square().sum()
    return ((unit.sum(0).square().sum() - alone) / (N * (N - 1))).clamp(-1, 1).item()


@dataclass(frozen=True, slots=True, eq=False)
class Manifold:
    """The region of feature space in which unshifted samples lie.

    Attributes:
        points: Features of unshifted samples, ``[n, F]``.
        radius: Distance of each point to its third-nearest neighbour, ``[n]``.
        share: Share of the points that lie within the radius of another point.
        spread: Mean distance of two points.
    """

    points: Tensor
    radius: Tensor
    share: float
    spread: float

    @classmethod
    def of(cls, points: Tensor) -> Manifold:
        """Return the manifold of points ``[n, F]``, n at least 5."""
        n = len(points)
        apart = torch.cdist(points, points)
        apart.fill_diagonal_(math.inf)
        radius = apart.kthvalue(3, dim=1).values
        share = (apart <= radius[None]).any(1).float().mean().item()
        spread = apart.nan_to_num(posinf=0.0).sum().item() / (n * (n - 1))
        return cls(points, radius, share, max(spread, 1e-12))

    def fidelity(self, points: Tensor) -> float:
        """Return the share of ``points [N, F]`` inside the region, relative to ``share``."""
        inside = (torch.cdist(points, self.points) <= self.radius[None]).any(1).float().mean()
        return min(inside.item() / max(self.share, 1e-12), 1.0)


def deepest(net: FeatureNet, images: Tensor, batch_size: int = 64) -> Tensor:
    """Return the deepest feature map of images, flattened to ``[N, F]``."""
    return torch.cat([net.maps(part)[-1].flatten(1).float() for part in images.split(batch_size)])
