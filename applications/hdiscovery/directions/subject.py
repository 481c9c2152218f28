"""What is evaluated: directions, learnt or not, with all that a measure of them asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hdiscovery.directions.discovery import Discovery
from hdiscovery.directions.seeds import seeded
from hdiscovery.directions.step import Directions
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.networks.reconstructor import build_reconstructor

Pair = tuple[Tensor, Tensor, Tensor, Tensor]  # x_0, shifted x_0, k, s
Progress = Callable[[range], Iterable[int]]
DRAWN_AT_ONCE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """K directions under the settings of a run. A baseline is one, as a trained run is.

    Attributes:
        name: How reports call it.
        K: Number of directions.
        S: Largest shift.
        dm: The frozen diffusion model.
        directions: f: what shifts h.
        grid: Times of the chains.
        t_stop: Last time (inclusive) that is shifted.
        real: The chain ``x_T -> x_0``.
        shifted: The chain ``x_T, k, s -> shifted x_0``.
        draw: Draws n triples x_T ``[n, C, H, W]``, k and s ``[n]`` as the training does, from
            torch's global stream.
        R: The reconstructor that was trained with the directions, or None where there is none.
        new_R: Makes a reconstructor of the same architecture, untrained.
        weights: lambda_1 and lambda_2, of the cross entropy and of the l1 error.
        augment: Whether a reconstructor's pairs are turned, scaled and moved when it sees them
            again.
    """

    name: str
    K: int
    S: float
    dm: DiffusionModel
    directions: Directions
    grid: tuple[int, ...]
    t_stop: int
    real: Callable[[Tensor], Tensor]
    shifted: Callable[[Tensor, Tensor, Tensor], Tensor]
    draw: Callable[[int], tuple[Tensor, Tensor, Tensor]]
    R: nn.Module | None
    new_R: Callable[[], nn.Module]
    weights: tuple[float, float]
    augment: bool

    @property
    def device(self) -> torch.device:
        """Where the diffusion model is."""
        return next(self.dm.unet.parameters()).device


def of_run(discovery: Discovery, name: str = "learnt") -> Subject:
    """Return a run's own directions as a subject."""
    config, dm = discovery.config, discovery.dm
    channels, size, _ = dm.image_shape

    def new_reconstructor() -> nn.Module:
        return build_reconstructor(
            config.networks.reconstructor,
            channels=channels,
            image_size=size,
            num_directions=config.shift.K,
            dropout=config.networks.r_dropout,
        )

    step: Any = discovery.shifted.step
    return Subject(
        name, config.shift.K, config.shift.S, dm, step.directions, step.grid, step.t_stop,
        discovery.real, discovery.shifted, discovery.draw, discovery.R, new_reconstructor,
        (config.loss.lambda_1, config.loss.lambda_2), config.training.r_augment,
    )  # fmt: skip


def with_directions(discovery: Discovery, directions: Directions, name: str) -> Subject:
    """Return other directions, K of them, under the settings of a run; no R knows them yet."""
    shifted = discovery.along(directions)
    return replace(of_run(discovery), name=name, directions=directions, shifted=shifted, R=None)


def pairs(
    subject: Subject, count: int, *, seed: int, first: int = 0, batch_size: int = 64,
    progress: Progress = iter,
) -> Iterator[Pair]:  # fmt: skip
    """Yield batches of pairs drawn as in training; torch's global stream stays where it is.

    Args:
        subject: Whose directions.
        count: Pairs in all, at least 1. The last batch may be smaller.
        seed: Two subjects of the same run are given the same x_T, k and s by the same seed.
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
    drawn = draw_apart(subject, first + count, seed)
    drawn = tuple(column[first:] for column in drawn)
    for start in progress(range(0, count, batch_size)):
        part = (column[start : start + batch_size].to(subject.device) for column in drawn)
        x_T, k, s = part
        with torch.no_grad():
            yield subject.real(x_T), subject.shifted(x_T, k, s), k, s


def draw_apart(subject: Subject, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first ``count`` triples of a seed, on the CPU; the global stream stays as it was.

    They are drawn block by block: a larger count begins with the triples of a smaller one.
    """
    with seeded(seed):
        blocks = [subject.draw(DRAWN_AT_ONCE) for _ in range(0, count, DRAWN_AT_ONCE)]
    x_T, k, s = (torch.cat(column)[:count].cpu() for column in zip(*blocks, strict=True))
    return x_T, k, s


def noise(subject: Subject, count: int, seed: int) -> Tensor:
    """Return x_T of ``count`` samples, ``[count, C, H, W]`` on the subject's device."""
    generator = torch.Generator().manual_seed(seed)
    x_T = torch.randn(count, *subject.dm.image_shape, generator=generator)
    return x_T.to(subject.device)


def samples(subject: Subject, count: int, *, seed: int, batch_size: int = 64) -> Tensor:
    """Return unshifted samples ``[count, C, H, W]``, not clamped."""
    with torch.no_grad():
        parts = noise(subject, count, seed).split(batch_size)
        return torch.cat([subject.real(x_T) for x_T in parts])
