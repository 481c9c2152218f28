"""Which directions have the same effect, or the opposite one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hdiscovery.directions.direction_set import DirectionSet


def cosines(vectors: Tensor) -> Tensor:
    """Return the cosine of every two rows, ``[K, F] -> [K, K]``; 0 for a zero row."""
    unit = torch.nn.functional.normalize(vectors.flatten(1), dim=1)
    return unit @ unit.T


def shift_cosines(subject: DirectionSet, *, num_samples: int, seed: int) -> Tensor:
    """Return the cosine of every two directions' mean dh, ``[K, K]``, on the CPU.

    The mean is over samples. The cosine is over all shifted steps, concatenated. Memory holds K
    points of h-space.

    Args:
        subject: The subject whose directions are compared.
        num_samples: Samples that the mean is over.
        seed: Seed of x_T.
    """
    K = subject.K
    products = torch.zeros(K, K, dtype=torch.float64)
    x_T = subject.noise(num_samples, seed=seed)
    for node in subject.trajectory(x_T):
        mean = mean_shifts(subject, node.h, node.encoded.embedding, node.t).cpu().double()
        products += mean @ mean.T
    length = products.diagonal().clamp_min(0).sqrt()
    scale = torch.where(length > 0, 1 / length.clamp_min(1e-300), 0.0)
    return (products * scale[:, None] * scale[None]).float()


def mean_shifts(subject: DirectionSet, h: Tensor, embedding: Tensor, t: int) -> Tensor:
    """Return every direction's dh for s = 1, averaged over samples, ``[K, F]``."""
    rows = []
    with torch.no_grad():
        for k in range(subject.K):
            chosen = torch.full((len(h),), k, device=h.device)
            rows.append(subject.f(h, embedding, chosen, t).mean(0).flatten())
    return torch.stack(rows)


def stronger(a: Tensor, b: Tensor) -> Tensor:
    """Return, element by element, the cosine of larger absolute value."""
    return torch.where(a.abs() >= b.abs(), a, b)


def twins(
    similarity: Tensor, order: Sequence[int], *, threshold: float = 0.9
) -> dict[int, tuple[int, int, float]]:
    """Return the directions that are twins of better ones.

    Args:
        similarity: ``[K, K]`` in [-1, 1]; near -1, two directions have opposite effects.
        order: The directions, best first. The best direction of a group of twins is kept, and the
            others count as its twins.
        threshold: Smallest abs(similarity) of twins.

    Returns:
        For each twin: the direction of which it is a twin, the sign, and abs(similarity).

    Example:
        >>> same = torch.tensor([[1.0, -0.95, 0.1], [-0.95, 1.0, 0.0], [0.1, 0.0, 1.0]])
        >>> twin_of, sign, _ = twins(same, [1, 0, 2])[0]
        >>> (twin_of, sign)
        (1, -1)
    """
    kept: list[int] = []
    found: dict[int, tuple[int, int, float]] = {}
    for k in order:
        c, nearest = max(((abs(float(similarity[k, j])), j) for j in kept), default=(0.0, -1))
        if c >= threshold:
            found[k] = (nearest, 1 if similarity[k, nearest] > 0 else -1, min(c, 1.0))
        else:
            kept.append(k)
    return found
