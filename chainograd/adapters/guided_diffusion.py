"""guided-diffusion's samplers as pure steps. Does not import guided-diffusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from chainograd.adapters.slicing import checked_index
from chainograd.errors import ChainError

Sampler = Literal["ddim", "p"]


class GuidedDiffusionStep(nn.Module):
    """Step i of a guided-diffusion sampler; made by `guided_diffusion_step`."""

    def __init__(
        self,
        diffusion: Any,
        model: Callable[..., Tensor],
        sampler: Sampler,
        model_kwargs: Mapping[str, Any],
        cond_fn: Callable[..., Tensor] | None,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.diffusion = diffusion
        self.model = model
        self.sampler = sampler
        self.model_kwargs = dict(model_kwargs)
        self.cond_fn = cond_fn
        self.options = dict(options)

    @property
    def num_steps(self) -> int:
        """Number of steps of the (spaced) diffusion."""
        return self.diffusion.num_timesteps

    def forward(self, x: Tensor, i: int, **extra: Any) -> Tensor:
        """Return the state that leaves step i; ``extra`` is added to ``model_kwargs``."""
        last = self.num_steps - 1
        t = x.new_full((len(x),), last - checked_index(i, self.num_steps), dtype=torch.int64)
        sample = getattr(self.diffusion, f"{self.sampler}_sample")
        out = sample(
            self.model,
            x,
            t,
            cond_fn=None if self.cond_fn is None else self._guidance,
            model_kwargs={**self.model_kwargs, **extra},
            **self.options,
        )
        return out["sample"]

    def _guidance(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        assert self.cond_fn is not None
        gradient = self.cond_fn(x, t, **kwargs)
        if torch.is_grad_enabled() and x.requires_grad and not gradient.requires_grad:
            raise ChainError(
                "`cond_fn` returns its guidance without a gradient, so the chain's gradient would "
                "lack it. Make it with `classifier_guidance(log_probability)`. To leave the "
                "gradient out on purpose, return `guidance + 0 * x`."
            )
        return gradient


def guided_diffusion_step(
    diffusion: Any,
    model: Callable[..., Tensor],
    *,
    sampler: Sampler = "ddim",
    clip_denoised: bool = True,
    eta: float = 0.0,
    model_kwargs: Mapping[str, Any] | None = None,
    cond_fn: Callable[..., Tensor] | None = None,
) -> GuidedDiffusionStep:
    r"""Return a sampler of guided-diffusion as a pure step ``step(x, i, **extra) -> x``.

    Step i is ``diffusion.ddim_sample`` or ``diffusion.p_sample`` at time ``num_timesteps - 1 - i``,
    as in the library's loops. The loops themselves run under ``no_grad``. Noise comes from torch's
    global stream, which a chain replays; ``ddim_sample`` draws noise even if ``eta`` is 0.

    Args:
        diffusion: A ``GaussianDiffusion`` or ``SpacedDiffusion``. It uses its tables in float32.
        model: ``model(x, t, **model_kwargs)``, as guided-diffusion takes it.
        sampler: ``"ddim"``, or ``"p"`` for ancestral sampling.
        clip_denoised: Whether to clip predicted images to [-1, 1], the library's default. The
            gradient of a clipped pixel is 0.
        eta: Stochasticity of ``"ddim"``.
        model_kwargs: Keyword arguments of the model and of ``cond_fn`` at every step. To make a
            tensor an argument of the chain, pass it to the call: ``chain(x, y=y)``.
        cond_fn: ``cond_fn(x, t, **model_kwargs)``, the gradient of a log-probability that guides
            the sampler, from `classifier_guidance`. The one in guided-diffusion's script detaches
            x; it is refused if a gradient must pass.

    Returns:
        A module with ``num_steps``, so that a chain finds the model's parameters.

    Raises:
        ValueError: If the sampler is unknown, or if the ancestral sampler is given an ``eta``.
        TypeError: If ``diffusion`` has no such sampler.

    References:
        Dhariwal and Nichol (2021), Diffusion Models Beat GANs on Image Synthesis.

    Example:
        >>> class Toy:
        ...     num_timesteps = 3
        ...     def ddim_sample(self, model, x, t, eta, **options):
        ...         return {"sample": x - model(x, t)}
        >>> step = guided_diffusion_step(Toy(), lambda x, t: t[:, None])
        >>> [step(torch.zeros(1, 1), i).item() for i in range(step.num_steps)]
        [-2.0, -1.0, 0.0]
    """
    if sampler not in get_args(Sampler):
        raise ValueError(f"`sampler` must be one of {get_args(Sampler)}, got {sampler!r}.")
    if sampler == "p" and eta:
        raise ValueError(
            f"`eta` is {eta}, but `sampler='p'` has no such option. Leave `eta` out, or use "
            "`sampler='ddim'`, where `eta=1` is close to ancestral sampling."
        )
    if not callable(getattr(diffusion, f"{sampler}_sample", None)):
        raise TypeError(
            f"`diffusion` is a {type(diffusion).__name__}, which has no method "
            f"`{sampler}_sample`. Pass a GaussianDiffusion or SpacedDiffusion of guided-diffusion."
        )
    options = {"clip_denoised": clip_denoised, **({"eta": eta} if sampler == "ddim" else {})}
    return GuidedDiffusionStep(diffusion, model, sampler, model_kwargs or {}, cond_fn, options)
