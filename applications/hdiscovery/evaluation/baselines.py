"""Baselines: directions that were not learnt, scaled to the strength of the learnt ones.

    dh = r_t v / |v|

r_t is the mean norm of the learnt dh at time t (for s = 1), so a baseline moves h as far as the run
does at every step. Without a trained run, r_t is the mean distance of h to its mean.

* ``random``: v is drawn from N(0, I) and is the same at every step.
* ``pca``: v is a principal component of the whole trajectory in h-space, (h_T, ..., h_t_stop)
  concatenated; each step uses its part of v. One analysis covers all steps, so neither signs nor
  order have to be matched between steps.
* ``jacobian``: v is an eigenvector of E[J^T J] with a large eigenvalue, where J = dP/dh is the
  derivative of the predicted x_0 with respect to h at the middle of the shifted steps. v is the
  same at every step. The mean over samples turns Park's local basis into a global one.

References:
    Haas et al. (2023), Discovering Interpretable Directions in the Semantic Latent Space of
    Diffusion Models (SemDiff), for PCA. Park et al. (2023), Understanding the Latent Space of
    Diffusion Models through the Lens of Riemannian Geometry, for the Jacobian.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.directions.seeds import seeded
from hdiscovery.dm.walk import Node
from hdiscovery.evaluation.settings import BaselineName


class FixedDirections(nn.Module):
    """Directions that do not depend on h: ``dh = r_t v_t``.

    Args:
        vectors: ``[K, *h_shape]``, or one such tensor for each time. They are normalised.
        norms: r_t for each time. Any other time uses the nearest one.

    Shapes:
        h ``[N, C, H, W]``, k ``[N]`` -> ``[N, C, H, W]``.
    """

    times: Tensor
    norms: Tensor
    vectors: Tensor

    def __init__(self, vectors: Mapping[int, Tensor] | Tensor, norms: Mapping[int, float]) -> None:
        super().__init__()
        times = sorted(norms)
        at = vectors if isinstance(vectors, Mapping) else dict.fromkeys(times[:1], vectors)
        self.register_buffer("times", torch.tensor(times))
        self.register_buffer("norms", torch.tensor([norms[t] for t in times]))
        self.register_buffer("vectors", torch.stack([_unit(at[t]) for t in sorted(at)]))

    def forward(self, h: Tensor, embedding: Tensor, k: Tensor, t: int) -> Tensor:
        """Return dh."""
        i = int((self.times - t).abs().argmin())
        v = self.vectors[i if len(self.vectors) > 1 else 0]
        return (self.norms[i] * v[k]).to(h.dtype)


def baseline(
    name: BaselineName,
    subject: DirectionSet,
    *,
    norms: Mapping[int, float] | None = None,
    num_samples: int = 256,
    seed: int = 3,
) -> FixedDirections:
    """Return baseline directions, as many and as strong as a subject's.

    Args:
        name: ``"random"``, ``"pca"`` or ``"jacobian"``.
        subject: The subject whose diffusion model, steps, K and strength the baseline takes.
        norms: r_t for each time; by default measured on ``subject``.
        num_samples: Samples to analyse. ``"pca"`` takes at least K + 1 and holds h of all of
            them; ``"jacobian"`` takes at most 16.
        seed: Seed of the samples and of the random vectors.

    Raises:
        ValueError: If ``name`` is unknown.
    """
    norms = learnt_norms(subject, seed=seed) if norms is None else norms
    if name == "random":
        shape = (subject.K, *subject.dm.unet.h_shape)
        vectors = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return FixedDirections(vectors, norms).to(subject.device)
    if name == "pca":
        parts = principal_components(subject, max(num_samples, subject.K + 1), seed)
        return FixedDirections(parts, norms).to(subject.device)
    if name == "jacobian":
        vectors = jacobian_directions(subject, min(num_samples, 16), seed)
        return FixedDirections(vectors, norms).to(subject.device)
    raise ValueError(
        f"The baseline {name!r} is unknown. Choose from {', '.join(get_args(BaselineName))}."
    )


def learnt_norms(
    subject: DirectionSet, *, num_samples: int = 16, seed: int = 3
) -> dict[int, float]:
    """Return r_t of every shifted step: |dh| averaged over samples and directions."""
    x_T = subject.noise(num_samples, seed=seed)
    nodes = subject.trajectory(x_T)
    return {node.t: mean_norm(subject, node) for node in nodes}


def spread_norms(
    subject: DirectionSet, *, num_samples: int = 64, seed: int = 3
) -> dict[int, float]:
    """Return r_t without a trained run: the mean distance of h to its mean, step by step."""
    x_T = subject.noise(num_samples, seed=seed)
    nodes = subject.trajectory(x_T)
    return {n.t: (n.h - n.h.mean(0)).flatten(1).norm(dim=1).mean().item() for n in nodes}


def mean_norm(subject: DirectionSet, node: Node) -> float:
    """Return |dh| averaged over the samples of one step and all directions."""
    total = 0.0
    with torch.no_grad():
        for k in range(subject.K):
            chosen = torch.full((len(node.h),), k, device=node.h.device)
            dh = subject.f(node.h, node.encoded.embedding, chosen, node.t)
            total += dh.flatten(1).norm(dim=1).mean().item()
    return total / subject.K


def principal_components(subject: DirectionSet, num_samples: int, seed: int) -> dict[int, Tensor]:
    """Return the first K components of the trajectory in h-space, ``[K, *h_shape]`` per time."""
    parts: dict[int, list[Tensor]] = {}
    for x_T in subject.noise(num_samples, seed=seed).split(64):
        for node in subject.trajectory(x_T):
            parts.setdefault(node.t, []).append(node.h.flatten(1).cpu())
    columns = {t: torch.cat(found).float() for t, found in parts.items()}
    X = torch.cat(list(columns.values()), dim=1)
    with seeded(seed):
        _, _, V = torch.pca_lowrank(X, q=min(subject.K + 8, *X.shape), niter=4)
    each = V[:, : subject.K].T.split([c.shape[1] for c in columns.values()], dim=1)
    shape = subject.dm.unet.h_shape
    return {t: v.reshape(-1, *shape) for t, v in zip(columns, each, strict=True)}


def jacobian_directions(
    subject: DirectionSet, num_samples: int, seed: int, *, iterations: int = 6
) -> Tensor:
    """Return the K leading eigenvectors of E[J^T J], ``[K, *h_shape]``, by subspace iteration.

        V <- orthonormal(E[J^T J V])

    Costs ``2 K iterations`` backward passes of the decoder, and holds the decoder's graph for
    ``num_samples`` samples. P here is the predicted noise: its constant factor to the predicted
    x_0 does not change the eigenvectors.
    """
    x_T = subject.noise(num_samples, seed=seed)
    nodes = list(subject.trajectory(x_T))
    node = nodes[len(nodes) // 2]
    shape = (subject.K, *subject.dm.unet.h_shape)
    V = _orthonormal(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(node.h))
    h = node.h.detach().requires_grad_()
    # Only the MATH backend of attention has a second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        P = subject.dm.unet.decode(h, node.encoded)[:, : node.x.shape[1]]
        u = torch.zeros_like(P, requires_grad=True)
        (Jtu,) = torch.autograd.grad(P, h, u, create_graph=True)
        for _ in range(iterations):
            V = _orthonormal(torch.stack([_gram(P, h, u, Jtu, v).mean(0) for v in V]))
    return V.cpu()


def _gram(P: Tensor, h: Tensor, u: Tensor, Jtu: Tensor, v: Tensor) -> Tensor:
    """Return J^T J v of each sample; J v is the derivative of J^T u (linear in u) times v."""
    (Jv,) = torch.autograd.grad(Jtu, u, v.expand_as(h), retain_graph=True)
    (JtJv,) = torch.autograd.grad(P, h, Jv, retain_graph=True)
    return JtJv


def _orthonormal(rows: Tensor) -> Tensor:
    Q, R = torch.linalg.qr(rows.flatten(1).T.double())
    Q = Q * R.diagonal().sign()  # QR may flip a vector's sign
    return Q.T.to(rows.dtype).view_as(rows)


def _unit(vectors: Tensor) -> Tensor:
    length = vectors.flatten(1).norm(dim=1).clamp_min(1e-12)
    return vectors / length[:, None, None, None]
