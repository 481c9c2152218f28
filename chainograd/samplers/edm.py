"""EDM: Euler's and Heun's method for a denoiser, along noise levels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from chainograd.samplers.grids import falling
from chainograd.samplers.karras import Churn
from chainograd.samplers.ode import euler, heun
from chainograd.samplers.prediction import per_sample


class _EDM(nn.Module):
    """The part that EDM's samplers share: everything but the rule of the step."""

    _rule = staticmethod(euler)

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        sigmas: Sequence[float],
        *,
        churn: Churn | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.sigmas = falling(
            "sigmas", sigmas, least=0, most=sys.float_info.max, source="karras_sigmas(num_steps)"
        )
        self.churn = churn

    @property
    def num_steps(self) -> int:
        """Number of steps from level to level."""
        return len(self.sigmas) - 1

    def forward(self, x: Tensor, i: int, *args: object, **kwargs: object) -> Tensor:
        """Return the state at noise level ``sigmas[i + 1]``."""
        sigma, sigma_next = self.sigmas[i], self.sigmas[i + 1]
        x_hat, sigma_hat = x, sigma
        if self.churn is not None:
            x_hat, sigma_hat = self.churn(x, i, sigma, self.num_steps)

        def slope(x: Tensor, sigma: float) -> Tensor:
            D = self.denoiser(x, per_sample(x, sigma), *args, **kwargs)
            return (x - D.to(x.dtype)) / sigma

        return self._rule(slope, x_hat, sigma_hat, sigma_next)


class EDMEuler(_EDM):
    r"""Euler's method for a denoiser, as a pure step ``x, i -> x``.

    Step ``i`` goes from the noise level ``sigmas[i]`` to ``sigmas[i + 1]`` along

        dx/dsigma = (x - D(x, sigma)) / sigma

    in one evaluation of D, with a first-order error. A step to level 0 returns D itself. This is
    `DDIM` with eta = 0 in other letters: x = x_t / sqrt(alpha_bar), sigma^2 = 1/alpha_bar - 1.

    Args:
        denoiser: ``D(x, sigma, *args, **kwargs)`` returns the expected clean data for x, which is
            data plus noise of standard deviation sigma. sigma is ``[N]``, in float32 or the dtype
            of x if that is wider. Further arguments of the chain are passed to the denoiser.
        sigmas: Falling noise levels as from `karras_sigmas`; only the last may be 0.
        churn: Fresh noise before each step; by default there is none.

    Raises:
        TypeError: If ``sigmas`` holds something other than numbers.
        ValueError: If ``sigmas`` does not fall or goes below 0.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models,
        Algorithm 2 without its correction.

    Example:
        >>> import torch
        >>> from chainograd import CheckpointedChain
        >>> from chainograd.samplers import EDMEuler, karras_sigmas
        >>> sigmas = karras_sigmas(8)
        >>> step = EDMEuler(lambda x, sigma: x / (1 + sigma[:, None] ** 2), sigmas)
        >>> CheckpointedChain(step, step.num_steps)(sigmas[0] * torch.ones(1, 3)).shape
        torch.Size([1, 3])
    """


class EDMHeun(_EDM):
    r"""Heun's method for a denoiser, EDM's own sampler, as a pure step ``x, i -> x``.

    Step ``i`` goes from the noise level ``sigmas[i]`` to ``sigmas[i + 1]`` along

        d(x, sigma) = (x - D(x, sigma)) / sigma
        ahead       = x + (sigma_next - sigma) d(x, sigma)
        x_next      = x + (sigma_next - sigma) (d(x, sigma) + d(ahead, sigma_next)) / 2

    in two evaluations of D, with a second-order error. The step to level 0, where d is not
    defined, is Euler's, so M steps take 2M - 1 evaluations. The graph of a step holds both.

    Args:
        denoiser: ``D(x, sigma, *args, **kwargs)`` returns the expected clean data for x, which is
            data plus noise of standard deviation sigma. sigma is ``[N]``, in float32 or the dtype
            of x if that is wider. Further arguments of the chain are passed to the denoiser.
        sigmas: Falling noise levels as from `karras_sigmas`; only the last may be 0.
        churn: Fresh noise before each step; by default there is none.

    Raises:
        TypeError: If ``sigmas`` holds something other than numbers.
        ValueError: If ``sigmas`` does not fall or goes below 0.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models,
        Algorithms 1 and 2.

    Example:
        >>> import torch
        >>> from chainograd import CheckpointedChain
        >>> from chainograd.samplers import EDMHeun, karras_sigmas
        >>> sigmas = karras_sigmas(8)
        >>> step = EDMHeun(lambda x, sigma: x / (1 + sigma[:, None] ** 2), sigmas)
        >>> CheckpointedChain(step, step.num_steps)(sigmas[0] * torch.ones(1, 3)).shape
        torch.Size([1, 3])
    """

    _rule = staticmethod(heun)
