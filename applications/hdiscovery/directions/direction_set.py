"""K directions under a sampler: one face for a run, a published run, a file, and baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from chainograd import CheckpointedChain
from hdiscovery.directions.about import About
from hdiscovery.directions.draw import Drawn, draw
from hdiscovery.directions.sampler import Sampler
from hdiscovery.directions.step import ShiftFunction
from hdiscovery.directions.trained_run import TrainedRun
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.walk import Node, draw_noise, trajectory

Kind = Literal["direct", "mean", "global", "baseline"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DirectionSet:
    """K directions in the h-space of a diffusion model, and the sampler that shifts along them.

    Attributes:
        name: What reports call the directions.
        kind: ``"direct"`` is a shift block, ``"mean"`` and ``"global"`` are its means, and
            ``"baseline"`` is a set that nobody learnt.
        dm: The frozen diffusion model.
        f: The function from h to a shift, ``f(h, embedding, k, t) -> dh``.
        K: Number of directions.
        S: Largest training shift.
        sampler: The settings that samples are made with.
        known: Returns what is known besides, `about`. It is called when that is first asked for:
            a damaged file of labels does not keep directions from being evaluated.
        R: The reconstructor that was trained with the directions, or None.
        run: The training that the directions come from, or None for a file, which does not say.
    """

    name: str
    kind: Kind
    dm: DiffusionModel
    f: ShiftFunction
    K: int
    S: float
    sampler: Sampler
    known: Callable[[], About]
    R: nn.Module | None = None
    run: TrainedRun | None = None

    @cached_property
    def about(self) -> About:
        """Labels, scores, calibrated strengths and hashes; read from the disk at the first use.

        Raises:
            ValueError: If a file that holds them is damaged.
        """
        return self.known()

    @property
    def labels(self) -> tuple[str, ...]:
        """A text for each direction, possibly empty."""
        return self.about.labels

    @property
    def scores(self) -> tuple[float | None, ...]:
        """A number for each direction, larger is better, or None where there is no number."""
        return self.about.scores

    @property
    def M(self) -> int:  # noqa: N802
        """Number of sampling steps."""
        return self.sampler.M

    @property
    def t_stop(self) -> int:
        """Last time (inclusive) at which samples are shifted."""
        return self.sampler.t_stop

    @property
    def grid(self) -> tuple[int, ...]:
        """The M + 1 times of the chains."""
        return self.sampler.grid(self.dm)

    @property
    def times(self) -> tuple[int, ...]:
        """The times at which samples are shifted, falling."""
        return self.sampler.times(self.dm)

    @property
    def device(self) -> torch.device:
        """Where the diffusion model is."""
        return self.dm.device

    @property
    def trained_steps(self) -> int:
        """Training steps behind the directions; 0 for a file, which does not say."""
        return 0 if self.run is None else self.run.step

    @cached_property
    def real(self) -> CheckpointedChain:
        """The chain ``x_T -> x_0``."""
        return self.sampler.real(self.dm)

    @cached_property
    def shifted(self) -> CheckpointedChain:
        """The chain ``x_T, k, s -> shifted x_0``."""
        return self.sampler.shifted(self.dm, self.f)

    def draw(self, n: int) -> Drawn:
        """Draw n triples of x_T, k and s as the training does, from torch's global stream."""
        min_shift = 0.0 if self.run is None else self.run.min_shift
        return draw(
            n, self.dm.image_shape, K=self.K, S=self.S, min_shift=min_shift, device=self.device
        )

    def noise(self, count: int, *, seed: int) -> Tensor:
        """Return x_T of ``count`` samples, ``[count, C, H, W]`` on the model's device."""
        return draw_noise(self.dm, count, seed)

    def samples(self, count: int, *, seed: int, batch_size: int = 64) -> Tensor:
        """Return unshifted samples ``[count, C, H, W]``, not clamped, without a graph."""
        with torch.no_grad():
            parts = self.noise(count, seed=seed).split(batch_size)
            return torch.cat([self.real(x_T) for x_T in parts])

    def trajectory(self, x_T: Tensor) -> Iterator[Node]:
        """Yield the shifted steps' nodes of ``x_T`` ``[N, C, H, W]``, walked without a shift."""
        return trajectory(self.dm, self.grid, x_T, t_stop=self.t_stop)

    def with_f(self, f: ShiftFunction, *, name: str) -> DirectionSet:
        """Return K other directions under the same settings; no reconstructor knows them yet."""

        def known() -> About:
            return self.about.unnamed()

        return replace(self, name=name, kind="baseline", f=f, known=known, R=None)

    def training(self) -> TrainedRun:
        """Return the training that the directions come from.

        Raises:
            ValueError: If they come from a file, which does not say.
        """
        if self.run is None:
            raise ValueError(
                f"The directions {self.name!r} come from a file, which holds neither a "
                "reconstructor nor a training config. Open the run that they were measured from."
            )
        return self.run
