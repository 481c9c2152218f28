"""Checks of a k-diffusion sampler function and its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from chainograd.adapters.slicing import CARRY, checked_sigmas
from chainograd.samplers.noise import Noise

NoiseSampler = Callable[[Any, Any], Any]

# Why some samplers cannot be cut into steps, and what to use instead.
_FIXED = "Use a sampler that takes `sigmas`, such as sample_dpmpp_2s_ancestral with `eta=0`."
_REFUSED = {
    "sample_lms": f"remembers the derivatives of earlier steps. {CARRY}",
    "sample_dpmpp_2m": "remembers the denoised sample of the step before. "
    "Use `chainograd.samplers.DPMSolver2M`, the same solver for a noise prediction, which carries "
    "that sample in its state.",
    "sample_dpmpp_2m_sde": f"remembers the denoised sample of the step before. {CARRY}",
    "sample_dpmpp_3m_sde": f"remembers the denoised samples of two steps before. {CARRY}",
    "sample_dpm_adaptive": f"chooses its noise levels while it runs. {_FIXED}",
    "sample_dpm_fast": f"chooses its noise levels itself. {_FIXED}",
}


def name_of(fn: Callable[..., Tensor]) -> str:
    """Return a sampler function's name.

    Raises:
        TypeError: If ``fn`` is not a function.
        ValueError: If ``fn`` is a sampler that cannot be cut into steps.
    """
    if not callable(fn):
        raise TypeError(f"`fn` must be a sampler function of k-diffusion, got {fn!r}.")
    name = getattr(fn, "__name__", repr(fn))
    if name in _REFUSED:
        raise ValueError(f"`fn` {name} {_REFUSED[name]}")
    return name


def check_noise(
    name: str, draws: bool, noise_sampler: NoiseSampler | None, noise: Noise | None
) -> None:
    """Raise unless there is at most one noise function, and only if the sampler draws noise.

    Raises:
        ValueError: If both noise functions are passed, or the sampler takes no noise function.
    """
    if noise_sampler is not None and noise is not None:
        raise ValueError("Both `noise_sampler` and `noise` were passed. Pass one of them.")
    if not draws and (noise_sampler is not None or noise is not None):
        raise ValueError(
            f"`fn` {name} takes no noise function. Leave `noise_sampler` and `noise` out. (Noise "
            "of `s_churn` comes from torch's global stream, which a chain replays.)"
        )


def check_arguments(
    name: str, known: Mapping[str, Any], sigmas: Tensor, options: Mapping[str, Any]
) -> None:
    """Raise unless a sampler function takes ``sigmas`` and all ``options``.

    Raises:
        TypeError: If ``fn`` does not take an option, or ``sigmas`` is not a tensor.
        ValueError: If ``fn`` does not take ``sigmas``, or ``sigmas`` is not a vector.
    """
    if "sigmas" not in known:
        raise ValueError(
            f"`fn` {name} must take `sigmas`, as fn(model, x, sigmas, ...), because a step runs "
            f"it on two sigmas. It takes {', '.join(known)}. {_FIXED}"
        )
    if "callback" in options:
        raise ValueError(
            "`callback` would be called again in every rerun of a step. Use `chain.trajectory` to "
            "see the states, or `grad_transform` to see their cotangents."
        )
    unknown = options.keys() - known.keys()
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        raise TypeError(
            f"`fn` {name} takes no {', '.join(sorted(unknown))}. It takes {', '.join(known)}."
        )
    checked_sigmas(sigmas)


def no_noise(name: str, known: Mapping[str, Any], options: Mapping[str, Any]) -> NoiseSampler:
    """Return a noise sampler for ``eta=0``; raise if the sampler would add noise."""
    default = known["eta"].default if "eta" in known else 1.0
    if options.get("eta", default) != 0:
        raise ValueError(
            f"`fn` {name} adds noise, but got no noise function, so a rerun of a step would draw "
            "other noise. Pass `noise=SeededNoise(seed)` of `chainograd.samplers`, or a "
            "`noise_sampler(sigma, sigma_next)` that is a function of its arguments alone, or "
            "`eta=0`."
        )
    return _zero


def _zero(sigma: Any, sigma_next: Any) -> float:
    return 0.0
