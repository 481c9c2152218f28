"""Noise schedules, which give alpha-bar at every time, and time grids."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from chainograd.torch_internals.modes import no_dispatch

GridConvention = Literal["asyrp", "author"]


@dataclass(frozen=True, slots=True, eq=False)
class NoiseSchedule:
    r"""The variance schedule of a diffusion model, in float64.

    Times are the network's 0-based indices ``0 … T-1``; ``-1`` means clean data:

        alpha_bar(t) = prod_{s <= t} (1 - beta_s),        alpha_bar(-1) = 1

    Attributes:
        betas: ``[T]``, float64, each in (0, 1).
        alpha_bars: ``[T]``, float64, strictly decreasing.

    Example:
        >>> schedule = NoiseSchedule.linear()
        >>> round(schedule.alpha_bar(0), 4), schedule.alpha_bar(-1)
        (0.9999, 1.0)
    """

    betas: Tensor
    alpha_bars: Tensor

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """Return the schedule with the given betas.

        Args:
            betas: ``[T]``, each in (0, 1); converted to float64.

        Raises:
            ValueError: If ``betas`` is not a vector of numbers in (0, 1).
        """
        betas = torch.as_tensor(betas).detach().to("cpu", torch.float64)
        if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(
                "`betas` must be a vector of numbers strictly between 0 and 1, got shape "
                f"{tuple(betas.shape)}. For a schedule given as alpha-bars, pass the first beta, "
                "followed by `1 - alpha_bars[1:] / alpha_bars[:-1]`."
            )
        return cls(betas, torch.cumprod(1 - betas, dim=0))

    @classmethod
    def linear(cls, num_train_steps: int = 1000) -> NoiseSchedule:
        """Return DDPM's linear schedule: 1e-4 to 2e-2 at 1000 steps, rescaled to other lengths.

        Args:
            num_train_steps: T, at least 21; for fewer steps the last beta would reach 1.

        References:
            Ho et al. (2020), Denoising Diffusion Probabilistic Models, section 4.
        """
        scale = 1000 / num_train_steps
        betas = torch.linspace(scale * 1e-4, scale * 2e-2, num_train_steps, dtype=torch.float64)
        return cls.from_betas(betas)

    @classmethod
    def cosine(cls, num_train_steps: int = 1000, *, max_beta: float = 0.999) -> NoiseSchedule:
        """Return the squared-cosine schedule.

        Args:
            num_train_steps: T, at least 1.
            max_beta: Upper bound of the betas; the formula itself reaches 1 at the end.

        References:
            Nichol and Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models, Eq. 17.
        """

        def f(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        T = num_train_steps
        betas = [min(1 - f((t + 1) / T) / f(t / T), max_beta) for t in range(T)]
        return cls.from_betas(torch.tensor(betas, dtype=torch.float64))

    @property
    def num_train_steps(self) -> int:
        """T, the number of noise levels that the network was trained on."""
        return len(self.betas)

    def alpha_bar(self, t: int) -> float:
        """Return alpha-bar at index ``t`` as a float; ``t = -1`` is clean data, 1.0.

        Raises:
            ValueError: If ``t`` is not in -1 … T-1.
        """
        if not -1 <= t < self.num_train_steps:
            raise ValueError(
                f"`t` must lie in -1 … {self.num_train_steps - 1} (0-based, -1 is clean data), "
                f"got {t}."
            )
        with no_dispatch():  # a real number, under FakeTensorMode too
            return 1.0 if t == -1 else self.alpha_bars[t].item()

    def noise(self, x_0: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """Return ``x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon``.

        Args:
            x_0: Clean data, ``[N, ...]``.
            t: Indices 0 … T-1, ``[N]``, int64.
            epsilon: Standard normal noise, the shape of ``x_0``.
        """
        alpha_bar = self.alpha_bars.to(x_0.device)[t]
        # In float64 and rounded once, because 1 - alpha_bar would lose digits.
        shape = (-1, *[1] * (x_0.ndim - 1))
        signal = alpha_bar.sqrt().to(x_0.dtype).view(shape)
        spread = (1 - alpha_bar).sqrt().to(x_0.dtype).view(shape)
        return signal * x_0 + spread * epsilon


def time_grid(
    num_steps: int, num_train_steps: int = 1000, *, convention: GridConvention = "asyrp"
) -> tuple[int, ...]:
    """Return the ``num_steps + 1`` times of a sampler, from T-1 down.

    Step ``i`` goes from ``grid[i]`` to ``grid[i + 1]``, so the network is evaluated exactly
    ``num_steps`` times. Fractions are cut off by integer division, so that no grid depends on the
    rounding of floats.

    Args:
        num_steps: M, number of network evaluations.
        num_train_steps: T of the schedule.
        convention: ``"asyrp"`` spreads M times over T-1 … 0 and ends with a jump to -1, clean
            data. ``"author"`` (from PDAE, by the paper's first author) spreads M+1 times over
            T-1 … 0 and ends at index 0, where alpha-bar is 0.9999.

    Returns:
        Strictly decreasing times.

    Raises:
        ValueError: If ``num_steps`` is out of range or the convention is unknown.

    Example:
        >>> time_grid(4, 1000, convention="asyrp")
        (999, 666, 333, 0, -1)
        >>> time_grid(4, 1000, convention="author")
        (999, 749, 499, 249, 0)
    """
    if convention not in get_args(GridConvention):
        raise ValueError(
            f"`convention` must be one of {', '.join(get_args(GridConvention))}, "
            f"got {convention!r}."
        )
    least, most = (1, num_train_steps) if convention == "asyrp" else (1, num_train_steps - 1)
    if not least <= num_steps <= most:
        raise ValueError(
            f"`num_steps` must lie in {least} … {most} for a schedule of {num_train_steps} "
            f"training steps in the {convention!r} convention, got {num_steps}."
        )
    last = num_train_steps - 1
    if convention == "author":
        return tuple(last * j // num_steps for j in range(num_steps, -1, -1))
    if num_steps == 1:
        return (last, -1)
    return (*(last * j // (num_steps - 1) for j in range(num_steps - 1, -1, -1)), -1)
