"""`LastStepAgain`: several losses through the last step, from fresh noise each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from chainograd.truncation.grad_steps import is_count


class LastStepAgain(nn.Module):
    r"""A step that noises a sample back to the start of the sampler's last step and repeats it.

        x_1   = alpha sg(x_0) + sigma z_k        k = 0 … n-1
        x_0^k = step(x_1, index)

    The mean gradient of n losses, each through one such step, has a lower variance than the
    gradient through the last step alone (DRaFT-LV). As a chain of n steps it needs the memory of
    one step. The state is ``(x_0, x_0^k)``: start from ``(x_0, x_0)`` and take the losses on all
    states of `CheckpointedChain.trajectory`, the first of which is x_0 itself.

    Args:
        step: The sampler's step, ``step(x, i, *args, **kwargs) -> x`` with a tensor x.
        index: Index of the last step, M - 1.
        alpha: Factor of the signal at the noise level where the last step begins: the square root
            of alpha-bar (DDIM, DDPM), 1 (EDM) or 1 - t (flow matching).
        sigma: Standard deviation of the noise there: the square root of 1 - alpha-bar, sigma, or
            t.
        noise: ``noise(x_0, k) -> z_k``, standard normal.

    Raises:
        ValueError: If ``index``, ``alpha`` or ``sigma`` is out of range.

    References:
        Clark et al. (2023), Directly Fine-Tuning Diffusion Models on Differentiable Rewards:
        DRaFT-LV.

    Example:
        >>> import torch
        >>> from chainograd import CheckpointedChain
        >>> w = torch.tensor(0.5, requires_grad=True)
        >>> step = lambda x, i: w * x
        >>> x_0 = CheckpointedChain(step, 50, grad_steps=1)(torch.ones(3))
        >>> noise = lambda x_0, k: torch.randn_like(x_0)
        >>> again = LastStepAgain(step, 49, alpha=0.6, sigma=0.8, noise=noise)
        >>> samples = CheckpointedChain(again, 2).trajectory((x_0, x_0))
        >>> (sum(x.square().mean() for _, x in samples) / 3).backward()
    """

    def __init__(
        self,
        step: Callable[..., Tensor],
        index: int,
        *,
        alpha: float,
        sigma: float,
        noise: Callable[[Tensor, int], Tensor],
    ) -> None:
        super().__init__()
        if index != 0 and not is_count(index):
            raise ValueError(f"`index` must be the last step's index, M - 1, got {index!r}.")
        if alpha < 0 or sigma <= 0:
            raise ValueError(
                f"`alpha` must be at least 0 and `sigma` above 0, got alpha={alpha} and "
                f"sigma={sigma}. Pass their values at the noise level where the last step begins."
            )
        self.step = step
        self.index = index
        self.alpha = alpha
        self.sigma = sigma
        self.noise = noise

    def forward(
        self, state: tuple[Tensor, Tensor], k: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return ``(x_0, x_0^k)``."""
        x_0, _ = state
        x_1 = self.alpha * x_0.detach() + self.sigma * self.noise(x_0, k)
        return x_0, self.step(x_1, self.index, *args, **kwargs)
