"""The noise levels of EDM, and its fresh noise before each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from chainograd.samplers.noise import Noise


def karras_sigmas(
    num_steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> tuple[float, ...]:
    r"""Return the ``num_steps + 1`` noise levels of EDM, the last of which is 0.

        sigma_i = (sigma_max^(1/rho) + i/(M-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho
        sigma_M = 0

    Args:
        num_steps: M, at least 1.
        sigma_min: The last level before 0, positive.
        sigma_max: The first level, larger; the chain starts from ``sigma_max`` times standard
            normal noise.
        rho: How much finer the grid is at low levels; 1 is uniform.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models,
        Eq. 5.

    Example:
        >>> [round(sigma, 3) for sigma in karras_sigmas(4)]
        [80.0, 9.723, 0.47, 0.002, 0.0]
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
    if not (0 < sigma_min < sigma_max < math.inf and 0 < rho < math.inf):
        raise ValueError(
            "`sigma_min`, `sigma_max` and `rho` must be positive and finite, `sigma_min` below "
            f"`sigma_max`, got {sigma_min}, {sigma_max} and {rho}. For other noise levels, pass "
            "any falling sequence to the sampler."
        )
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    fractions = (i / max(num_steps - 1, 1) for i in range(num_steps))
    return (*((high + u * (low - high)) ** rho for u in fractions), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    r"""Fresh noise before each step, which corrects errors of earlier steps.

        gamma     = min(strength / M, sqrt(2) - 1)   where sigma_min <= sigma <= sigma_max, else 0
        sigma_hat = (1 + gamma) sigma
        x_hat     = x + sqrt(sigma_hat^2 - sigma^2) scale z

    Attributes:
        noise: ``noise(x, i) -> z``, standard normal, a function of the index so that a step can
            run again: `SeededNoise`.
        strength: S_churn, at least 0; spread over the M steps of the grid.
        sigma_min: S_tmin, the lowest level with churn.
        sigma_max: S_tmax, the highest level with churn.
        scale: S_noise, standard deviation of the fresh noise. A value slightly above 1 compensates
            for denoisers that remove too much noise.

    Raises:
        ValueError: If the strength or the scale is negative.

    References:
        Karras et al. (2022), Algorithm 2.

    Example:
        >>> from chainograd.samplers import SeededNoise
        >>> Churn(noise=SeededNoise(0), strength=40, sigma_min=0.05, sigma_max=50, scale=1.003)
        Churn(noise=SeededNoise(seed=0), strength=40, sigma_min=0.05, sigma_max=50, scale=1.003)
    """

    noise: Noise
    strength: float
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.scale >= 0):
            raise ValueError(
                f"`strength` and `scale` must be at least 0, got {self.strength} and {self.scale}. "
                "To turn churn off, leave `churn` out."
            )

    def __call__(self, x: Tensor, i: int, sigma: float, num_steps: int) -> tuple[Tensor, float]:
        """Return x_hat and sigma_hat for step ``i`` of ``num_steps``, which starts at ``sigma``."""
        churned = self.sigma_min <= sigma <= self.sigma_max
        gamma = min(self.strength / num_steps, math.sqrt(2) - 1) if churned else 0.0
        if not gamma:
            return x, sigma
        sigma_hat = (1 + gamma) * sigma
        added = math.sqrt(sigma_hat**2 - sigma**2) * self.scale
        return x + added * self.noise(x, i), sigma_hat
