"""guided-diffusion's samplers as pure steps, and its networks in `DDIM`. Needs no import of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from chainograd.adapters.borders import checked_index
from chainograd.adapters.predictions import Prediction, epsilon_from
from chainograd.errors import ChainError
from chainograd.samplers.ddim import DDIM
from chainograd.samplers.noise import Noise
from chainograd.samplers.schedule import NoiseSchedule

Sampler = Literal["ddim", "p"]
# What its networks predict, by its names; `PREVIOUS_X` depends on the grid and is no prediction.
_PREDICTIONS: dict[str, Prediction] = {"EPSILON": "epsilon", "START_X": "sample"}


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
        """Number of steps, those that the diffusion was spaced to."""
        return self.diffusion.num_timesteps

    def forward(self, x: Tensor, i: int, **extra: Any) -> Tensor:
        """Return the state that leaves step i; ``extra`` goes where ``model_kwargs`` go."""
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
                "`cond_fn` returns its guidance without a gradient, which would be missing from "
                "the chain's. Make it with `classifier_guidance(log_probability)`; or, to leave it "
                "out on purpose, return `guidance + 0 * x`."
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
    the step of its loops, which run under ``no_grad`` and hand that to whoever iterates over them.
    Noise comes from torch's global stream, which a chain replays; ``ddim_sample`` draws even where
    ``eta`` is 0.

    Args:
        diffusion: A ``GaussianDiffusion`` or ``SpacedDiffusion``. Its tables are float32 where
            they are used.
        model: ``model(x, t, **model_kwargs)``, as guided-diffusion takes it.
        sampler: ``"ddim"``, or ``"p"`` for ancestral sampling.
        clip_denoised: Whether predicted images are clipped to [-1, 1], as is its default. The
            gradient is 0 where they are.
        eta: Stochasticity of ``"ddim"``.
        model_kwargs: Keyword arguments of the model and of ``cond_fn`` at every step. Those that
            are to be arguments of the chain are passed when it is called: ``chain(x, y=y)``.
        cond_fn: ``cond_fn(x, t, **model_kwargs)``, the gradient of a log-probability that guides
            the sampler, as `classifier_guidance` makes it. That of guided-diffusion's script
            detaches x, and is refused where a gradient has to pass.

    Returns:
        A module with ``num_steps``, so that a chain finds the model's parameters.

    Raises:
        ValueError: If the sampler is unknown, or if ``eta`` is given to the ancestral one.
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
            f"`eta` is for `sampler='ddim'` (there, 1 is about ancestral), got {eta} with 'p'."
        )
    if not callable(getattr(diffusion, f"{sampler}_sample", None)):
        raise TypeError(
            f"`diffusion` must have a method `{sampler}_sample`, as guided-diffusion's "
            f"GaussianDiffusion does; {type(diffusion).__name__} has none."
        )
    options = {"clip_denoised": clip_denoised, **({"eta": eta} if sampler == "ddim" else {})}
    return GuidedDiffusionStep(diffusion, model, sampler, model_kwargs or {}, cond_fn, options)


class IndexedModel(nn.Module):
    """A guided-diffusion network, asked by the indices of a spaced schedule.

    Attributes:
        times: The time of the network's own schedule at each index.
        scale: What the network takes times in; None is as they are, integers.
    """

    def __init__(
        self, model: Callable[..., Tensor], times: Sequence[int], scale: float | None
    ) -> None:
        super().__init__()
        self.model = model
        self.times = tuple(times)
        self.scale = scale

    def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """Return what is predicted, without the variance that a network may predict beside it."""
        times = torch.tensor(self.times, device=t.device)[t]
        if self.scale is not None:
            times = times.float() * self.scale
        return self.model(x, times, **kwargs)[:, : x.shape[1]]


def guided_diffusion_ddim(
    diffusion: Any,
    model: Callable[..., Tensor],
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    clamp: float | None = None,
) -> DDIM:
    r"""Return `DDIM` for a network of guided-diffusion, on the grid of its diffusion.

    It is ``ddim_sample`` with ``clip_denoised=False``, in float64 tables and with noise that is a
    value: float32 tables differ by about 1e-6. A learned variance (the second half of the
    network's channels) is left out, as DDIM does not use it.

    Args:
        diffusion: A ``GaussianDiffusion`` or ``SpacedDiffusion``.
        model: ``model(x, t, **kwargs)``, as guided-diffusion takes it.
        eta: As in `DDIM`.
        noise: As in `DDIM`.
        clamp: As in `DDIM`. (Guided-diffusion's clipping predicts the noise anew from what is
            clipped; for that, use `guided_diffusion_step`.)

    Raises:
        ValueError: If the network predicts the next state, or an option does not fit.

    References:
        Nichol and Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models, section 4.

    Example:
        >>> from types import SimpleNamespace as Toy
        >>> toy = Toy(betas=[0.1, 0.2, 0.3], model_mean_type=Toy(name="EPSILON"))
        >>> step = guided_diffusion_ddim(toy, lambda x, t: torch.cat([x, x], 1))
        >>> step.grid, step(torch.ones(1, 3, 2, 2), 0).shape
        ((2, 1, 0, -1), torch.Size([1, 3, 2, 2]))
    """
    predicted = diffusion.model_mean_type.name
    if predicted not in _PREDICTIONS:
        raise ValueError(
            f"`diffusion` has a network that predicts {predicted}, which DDIM cannot use; it can "
            f"use {', '.join(_PREDICTIONS)}. Use `guided_diffusion_step`."
        )
    schedule = NoiseSchedule.from_betas(torch.as_tensor(diffusion.betas))
    T = schedule.num_train_steps
    # A spaced diffusion knows which times of the original one its own are.
    times = getattr(diffusion, "timestep_map", range(T))
    scale = None
    if getattr(diffusion, "rescale_timesteps", False):
        scale = 1000.0 / getattr(diffusion, "original_num_steps", T)
    indexed = IndexedModel(model, times, scale)
    epsilon = epsilon_from(indexed, schedule, prediction=_PREDICTIONS[predicted])
    return DDIM(epsilon, schedule, range(T - 1, -2, -1), eta=eta, noise=noise, clamp=clamp)
