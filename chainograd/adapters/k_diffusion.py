"""k-diffusion's sampler functions as pure steps, cut out of their loops.

Does not import k-diffusion.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from chainograd.adapters.k_arguments import (
    NoiseSampler,
    check_arguments,
    check_noise,
    name_of,
    no_noise,
)
from chainograd.adapters.slicing import checked_index, try_in_slices
from chainograd.samplers.noise import Noise


class KDiffusionStep(nn.Module):
    """Step i of a k-diffusion sampler; made by `k_diffusion_step`."""

    def __init__(
        self,
        body: Callable[..., Tensor],
        model: Callable[..., Tensor],
        sigmas: Tensor,
        extra_args: Mapping[str, Any],
        noise: Noise | None,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.body = body
        self.model = model
        self.sigmas = sigmas
        self.extra_args = dict(extra_args)
        self.noise = noise
        self.options = dict(options)
        if "s_churn" in self.options:
            # The body divides by its number of steps, which is 1 here.
            self.options["s_churn"] = self.options["s_churn"] / self.num_steps

    @property
    def num_steps(self) -> int:
        """Number of steps, one less than the number of sigmas."""
        return len(self.sigmas) - 1

    def forward(self, x: Tensor, i: int, **extra: Any) -> Tensor:
        """Return the state at ``sigmas[i + 1]``; ``extra`` is passed to the model."""
        options = dict(self.options)
        if self.noise is not None:
            options["noise_sampler"] = _numbered(self.noise, x, i, self.num_steps)
        if self.extra_args or extra:
            options["extra_args"] = {**self.extra_args, **extra}
        i = checked_index(i, self.num_steps)
        return self.body(self.model, x, self.sigmas[i : i + 2], **options)


def k_diffusion_step(
    fn: Callable[..., Tensor],
    model: Callable[..., Tensor],
    sigmas: Tensor,
    *,
    extra_args: Mapping[str, Any] | None = None,
    noise_sampler: NoiseSampler | None = None,
    noise: Noise | None = None,
    **options: Any,
) -> KDiffusionStep:
    """Return a k-diffusion sampler as a pure step ``step(x, i, **extra) -> x``.

    Step i runs the body of ``fn``, without its ``no_grad``, on ``sigmas[i : i + 2]``. For
    ``sample_euler``, ``sample_euler_ancestral``, ``sample_heun``, ``sample_dpm_2``,
    ``sample_dpm_2_ancestral``, ``sample_dpmpp_2s_ancestral`` and ``sample_dpmpp_sde`` this equals
    the sampler's own step in every bit. Samplers with a memory are refused by name. Every function
    is first run on ``sigmas`` with a toy denoiser of six numbers, in milliseconds: step by step it
    must return the same as in one run.

    Noise of ``s_churn`` comes from torch's global stream, which a chain replays.

    Args:
        fn: ``fn(model, x, sigmas, ...)``, as in ``k_diffusion.sampling``.
        model: ``model(x, sigma, **extra_args) -> denoised``, sigma ``[N]``.
        sigmas: ``[M + 1]`` noise levels, on the device of x; the last may be 0. They get gradients
            if they require them. An ``nn.Parameter`` becomes a parameter of the step.
        extra_args: Keyword arguments of the model at every step. To make a tensor an argument of
            the chain, pass it to the call: ``chain(x, cond=c)``.
        noise_sampler: ``noise_sampler(sigma, sigma_next) -> z``, a function of its arguments alone.
        noise: An alternative to ``noise_sampler``: ``noise(x, i) -> z``, a function of the index.
            Step i draws with index i, and a second time (``sample_dpmpp_sde``) with index M + i.
        options: Further arguments of ``fn``, such as ``eta``, ``s_noise`` or ``s_churn``.

    Returns:
        A module with ``num_steps`` M, so that a chain finds the model's parameters.

    Raises:
        ValueError: If ``fn`` cannot be cut into steps, records no gradients, or adds noise without
            a noise function.
        TypeError: If ``fn`` does not take an option.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models.
        Lu et al. (2022), DPM-Solver++.

    Example:
        >>> @torch.no_grad()
        ... def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        ...     for sigma, following in zip(sigmas, sigmas[1:]):
        ...         d = (x - model(x, sigma.expand(len(x)))) / sigma
        ...         x = x + d * (following - sigma)
        ...     return x
        >>> sigmas = torch.tensor([10.0, 1.0, 0.0])
        >>> step = k_diffusion_step(sample_euler, lambda x, sigma: 0 * x, sigmas)
        >>> step.num_steps, step(torch.full((1, 1), 10.0), 0)
        (2, tensor([[1.]]))
    """
    name = name_of(fn)
    # The body inside the `no_grad` decorator that the library puts on every sampler.
    body = getattr(fn, "__wrapped__", fn)
    known = inspect.signature(body).parameters
    check_arguments(name, known, sigmas, options)
    if "disable" in known:
        options.setdefault("disable", True)  # no progress bar for each step
    draws = "noise_sampler" in known
    check_noise(name, draws, noise_sampler, noise)
    tried = {**options, "noise_sampler": _toy_noise} if draws else dict(options)
    if draws and noise is None:
        options["noise_sampler"] = noise_sampler or no_noise(name, known, options)
    try_in_slices(
        name,
        lambda model, x, sigmas: body(model, x, sigmas, **tried),
        lambda model, sigmas: KDiffusionStep(body, model, sigmas, {}, None, tried),
        sigmas,
    )
    return KDiffusionStep(body, model, sigmas, extra_args or {}, noise, options)


def _numbered(noise: Noise, x: Tensor, i: int, num_steps: int) -> NoiseSampler:
    """Return a noise sampler for step i whose k-th call draws with index i + k num_steps."""
    indices = count(i, num_steps)
    return lambda sigma, sigma_next: noise(x, next(indices))


def _toy_noise(sigma: Any, sigma_next: Any) -> Tensor:
    return torch.sin(100 * torch.as_tensor(sigma) + 37 * torch.as_tensor(sigma_next))
