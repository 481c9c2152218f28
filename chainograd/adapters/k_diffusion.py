"""k-diffusion's sampler functions as pure steps, cut out of their loops. Needs no import of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from chainograd.adapters.borders import checked_index, checked_sigmas
from chainograd.adapters.slicing import CARRY, try_in_slices
from chainograd.samplers.noise import Noise

NoiseSampler = Callable[[Any, Any], Any]

# Why some cannot be cut into steps, and what to use instead.
_FIXED = "Use one that is given them, such as sample_dpmpp_2s_ancestral with `eta=0`."
_REFUSED = {
    "sample_lms": f"remembers the derivatives of earlier steps. {CARRY}",
    "sample_dpmpp_2m": "remembers what was denoised in the step before. "
    "Use `chainograd.samplers.DPMSolver2M`, the same solver of a noise prediction, with that in "
    "its state.",
    "sample_dpmpp_2m_sde": f"remembers what was denoised in the step before. {CARRY}",
    "sample_dpmpp_3m_sde": f"remembers what was denoised in two steps before. {CARRY}",
    "sample_dpm_adaptive": f"chooses its noise levels while it runs. {_FIXED}",
    "sample_dpm_fast": f"chooses its noise levels itself. {_FIXED}",
}


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
            # Its body divides by the number of steps it is given, which is 1 in a slice.
            self.options["s_churn"] = self.options["s_churn"] / self.num_steps

    @property
    def num_steps(self) -> int:
        """Number of steps, one less than there are sigmas."""
        return len(self.sigmas) - 1

    def forward(self, x: Tensor, i: int, **extra: Any) -> Tensor:
        """Return the state at ``sigmas[i + 1]``; ``extra`` goes to the model."""
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

    Step i runs the body of ``fn``, without its ``no_grad``, on ``sigmas[i : i + 2]``. That is the
    sampler's own step, to the bit, for ``sample_euler``, ``sample_euler_ancestral``,
    ``sample_heun``, ``sample_dpm_2``, ``sample_dpm_2_ancestral``, ``sample_dpmpp_2s_ancestral``
    and ``sample_dpmpp_sde``. Samplers with a memory are refused by name; any function, those
    seven too, must first give the same result in slices as in one run on ``sigmas`` with a toy
    denoiser of six numbers: milliseconds.

    What ``s_churn`` adds is drawn from torch's global stream, which a chain replays.

    Args:
        fn: ``fn(model, x, sigmas, ...)``, as in ``k_diffusion.sampling``.
        model: ``model(x, sigma, **extra_args) -> denoised``, sigma ``[N]``.
        sigmas: ``[M + 1]`` noise levels, where x is; the last may be 0. They get gradients if they
            require them, and are parameters of the step if they are one.
        extra_args: Keyword arguments of the model at every step. Those that are to be arguments of
            the chain are passed when it is called: ``chain(x, cond=c)``.
        noise_sampler: ``noise_sampler(sigma, sigma_next) -> z``, a function of nothing else.
        noise: Instead of it, ``noise(x, i) -> z``, a function of the index: step i draws with
            index i, and a second time (``sample_dpmpp_sde``) with index M + i.
        options: Further arguments of ``fn``, such as ``eta``, ``s_noise`` or ``s_churn``.

    Returns:
        A module with ``num_steps`` M, so that a chain finds the model's parameters.

    Raises:
        ValueError: If ``fn`` cannot be cut into steps, if it records no gradients, or if it adds
            noise and is given none to add.
        TypeError: If ``fn`` does not know an option.

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
    if not callable(fn):
        raise TypeError(f"`fn` must be a sampler function of k-diffusion, got {fn!r}.")
    name = getattr(fn, "__name__", repr(fn))
    if name in _REFUSED:
        raise ValueError(f"`fn` {name} {_REFUSED[name]}")
    # The body below the `no_grad` that the library puts on every sampler.
    body = getattr(fn, "__wrapped__", fn)
    known = inspect.signature(body).parameters
    _check_arguments(name, known, sigmas, options)
    if "disable" in known:
        options.setdefault("disable", True)  # a progress bar for every step is no help
    if noise_sampler is not None and noise is not None:
        raise ValueError("`noise_sampler` and `noise` are two ways to say one thing: pass one.")
    draws = "noise_sampler" in known
    if not draws and (noise_sampler is not None or noise is not None):
        raise ValueError(
            f"`fn` {name} takes no noise: leave `noise_sampler` and `noise` out. (What `s_churn` "
            "adds comes from torch's global stream, which a chain replays.)"
        )
    tried = {**options, "noise_sampler": _toy_noise} if draws else dict(options)
    if draws and noise is None:
        options["noise_sampler"] = noise_sampler or _silent(name, known, options)
    try_in_slices(
        name,
        lambda model, x, sigmas: body(model, x, sigmas, **tried),
        lambda model, sigmas: KDiffusionStep(body, model, sigmas, {}, None, tried),
        sigmas,
    )
    return KDiffusionStep(body, model, sigmas, extra_args or {}, noise, options)


def _check_arguments(
    name: str, known: Mapping[str, Any], sigmas: Tensor, options: Mapping[str, Any]
) -> None:
    if "sigmas" not in known:
        raise ValueError(
            f"`fn` {name} must take `sigmas`, as fn(model, x, sigmas, ...), to be run on two of "
            f"them at a time; it takes {', '.join(known)}. {_FIXED}"
        )
    if "callback" in options:
        raise ValueError(
            "`callback` would be called again whenever a step is: look at the states with "
            "`chain.trajectory`, or at their cotangents with `grad_transform`."
        )
    unknown = options.keys() - known.keys()
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        raise TypeError(
            f"`fn` {name} takes no {', '.join(sorted(unknown))}; it takes {', '.join(known)}."
        )
    checked_sigmas(sigmas)


def _silent(name: str, known: Mapping[str, Any], options: Mapping[str, Any]) -> NoiseSampler:
    """Return no noise for a sampler that was told to add none."""
    default = known["eta"].default if "eta" in known else 1.0
    if options.get("eta", default) != 0:
        raise ValueError(
            f"`fn` {name} adds noise, which must be a value here, so that a step is the same "
            "whenever it is run. Pass `noise=SeededNoise(seed)` of `chainograd.samplers`, or a "
            "`noise_sampler(sigma, sigma_next)` that is a function of its arguments alone, or "
            "`eta=0`."
        )
    return _no_noise


def _no_noise(sigma: Any, sigma_next: Any) -> float:
    return 0.0


def _numbered(noise: Noise, x: Tensor, i: int, num_steps: int) -> NoiseSampler:
    """Return a noise sampler for step i whose k-th call draws with index i + k num_steps."""
    indices = count(i, num_steps)
    return lambda sigma, sigma_next: noise(x, next(indices))


def _toy_noise(sigma: Any, sigma_next: Any) -> Tensor:
    return torch.sin(100 * torch.as_tensor(sigma) + 37 * torch.as_tensor(sigma_next))
