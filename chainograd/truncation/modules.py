"""Which steps the gradient passes and which way through them, as published methods have it.

Whole steps are left out with ``grad_steps=`` of a chain. What is here chooses them at random, and
lets the gradient of a model or a step take only some of its ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from chainograd.state import differentiable
from chainograd.torch_internals import pytree
from chainograd.torch_internals.modes import no_dispatch


def random_suffix(
    least: int = 1, most: int | None = None, *, generator: Generator | None = None
) -> Callable[[int], int]:
    """Return a ``grad_steps`` that lets the gradient pass the last K steps, K drawn at each call.

    K is uniform on ``least … most``. It is drawn once a call, before the first step runs: so the
    steps that are kept are a suffix, and no replay repeats the draw or takes it back.

    Args:
        least: The least K, at least 1.
        most: The largest K; None is all steps.
        generator: What K is drawn from; None is torch's global stream on the CPU. Processes that
            are to agree on K need generators of one seed.

    Returns:
        A function of the number of steps, for `CheckpointedChain`.

    Raises:
        ValueError: If there is no such K. (Whether the chain is long enough shows in its call.)

    References:
        Prabhudesai et al. (2023), Aligning Text-to-Image Diffusion Models with Reward
        Backpropagation (AlignProp): randomized truncation. Code in use draws K anew at every step,
        and what it keeps is no suffix: the gradient may pass step 3 and not step 4.

    Example:
        >>> from chainograd import CheckpointedChain
        >>> w = torch.ones((), requires_grad=True)
        >>> chain = CheckpointedChain(lambda x, i: w * x, 10, grad_steps=random_suffix(2, 4))
        >>> chain(torch.ones(())).backward()
        >>> int(w.grad) in (2, 3, 4)
        True
    """
    if not _is_count(least) or not (most is None or (_is_count(most) and least <= most)):
        raise ValueError(
            f"`least` and `most` are numbers of last steps with 1 <= least <= most, got "
            f"least={least!r} and most={most!r}. Leave `most` out for all steps."
        )

    def draw(num_steps: int) -> int:
        highest = num_steps if most is None else most
        if not least <= highest <= num_steps:
            raise ValueError(
                f"`random_suffix(least={least}, most={most})` asks for more steps than the chain "
                f"has: neither may be above {num_steps}."
            )
        device = "cpu" if generator is None else generator.device
        with no_dispatch():  # a number is needed, under FakeTensorMode too
            K = torch.randint(least, highest + 1, (), generator=generator, device=device)
            return int(K.item())

    return draw


class ScaledInput(nn.Module):
    r"""A model that passes only a part of its gradient on to its first argument.

        model(u(x), …)        with  u(x) = x,  du/dx = scale

    In a sampler's step x_s = a x + b model(x, t) the Jacobian becomes a + scale b dmodel/dx. With
    ``scale=0`` the gradient runs along the linear path alone: x_T gets the product of the a's, and
    parameters get theirs through the output of their own step (DRTune). Another scale is the
    coupling alpha of FlowBP's bridge. Values stay the same.

    Args:
        model: ``model(x, *args, **kwargs)``; x is a tensor or any pytree of tensors.
        scale: The part; 0 stops the gradient.

    References:
        Wu et al. (2024), Deep Reward Supervisions for Tuning Text-to-Image Diffusion Models.
        Wang et al. (2026), Exploring the Design Space of Reward Backpropagation for Flow Matching.

    Example:
        >>> model = ScaledInput(torch.nn.Tanh(), scale=0.25)
        >>> x = torch.zeros((), requires_grad=True)
        >>> (3 * x + model(x)).backward()
        >>> x.grad
        tensor(3.2500)
    """

    def __init__(self, model: Callable[..., Any], *, scale: float) -> None:
        super().__init__()
        self.model = model
        self.scale = scale

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns."""
        return self.model(pytree.tree_map(self._scaled, x), *args, **kwargs)

    def _scaled(self, leaf: Any) -> Any:
        if not differentiable(leaf):
            return leaf
        if self.scale == 0:
            return leaf.detach()
        # x + scale (x - x), which is x to the bit; scale x + (1 - scale) x is not.
        return torch.lerp(leaf.detach(), leaf, self.scale)


class StoppedOutput(nn.Module):
    """A model that gets no gradient, for steps that are not to train it.

    The gradient still passes the step by its linear path, where ``grad_steps`` without the step
    would end it there. DRTune trains some steps: there the model has its input stopped, and
    elsewhere its output. A step is run again for the sake of its linear path too.

    Args:
        model: ``model(*args, **kwargs)``.

    Example:
        >>> model = torch.nn.Linear(1, 1)
        >>> x = torch.ones(1, requires_grad=True)
        >>> (3 * x + StoppedOutput(model)(x)).backward()
        >>> x.grad, model.weight.grad
        (tensor([3.]), None)
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns, outside its graph."""
        with torch.no_grad():  # no graph is built; tangents of forward-mode AD need the detach
            return pytree.tree_map_only(Tensor, Tensor.detach, self.model(*args, **kwargs))


class LastStepAgain(nn.Module):
    r"""A step that brings a sample back to where a sampler's last step began, and takes that step.

        x_1   = alpha sg(x_0) + sigma z_k        k = 0 … n-1
        x_0^k = step(x_1, index)

    The mean gradient of n losses, each through one step, varies less than that of the last step
    (DRaFT-LV). As a chain of n steps it needs the memory of one. The state is ``(x_0, x_0^k)``:
    begin with ``(x_0, x_0)`` and look at all of the trajectory, which begins with x_0 itself.

    Args:
        step: The sampler's step, ``step(x, i, *args, **kwargs) -> x`` with a tensor x.
        index: That of the last step, M - 1.
        alpha: What the signal is multiplied by at the noise level where the last step begins: the
            square root of alpha-bar; 1 where only sigma grows (EDM); 1 - t in flow matching.
        sigma: The standard deviation of the noise there: the square root of 1 - alpha-bar; sigma;
            t.
        noise: ``noise(x_0, k) -> z_k``, standard normal.

    Raises:
        ValueError: If ``index``, ``alpha`` or ``sigma`` is out of range.

    References:
        Clark et al. (2023), Directly Fine-Tuning Diffusion Models on Differentiable Rewards:
        DRaFT-LV.

    Example:
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
        if index != 0 and not _is_count(index):
            raise ValueError(f"`index` must be that of the last step, M - 1, got {index!r}.")
        if alpha < 0 or sigma <= 0:
            raise ValueError(
                f"`alpha` must be at least 0 and `sigma` above 0, got alpha={alpha} and "
                f"sigma={sigma}. They belong to the noise level where the last step begins."
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


def _is_count(K: object) -> bool:
    return isinstance(K, int) and not isinstance(K, bool) and K >= 1
