"""Noise schedules as diffusers' schedulers have them in their configs, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from chainograd.samplers.schedule import NoiseSchedule
from hdiscovery.dm.schedules import schedule_name

# Fields that make the network see other noise levels than the betas say.
NEUTRAL = {"rescale_betas_zero_snr": False, "snr_shift_scale": 1.0}

# The kinds of betas and the fields that each is computed from.
BETAS = {
    "linear": ("num_train_timesteps", "beta_start", "beta_end"),
    "scaled_linear": ("num_train_timesteps", "beta_start", "beta_end"),
    "squaredcos_cap_v2": ("num_train_timesteps",),
}


def schedule_from(config: Mapping[str, Any]) -> NoiseSchedule:
    """Return the noise schedule of a diffusers scheduler's config, of a network for the noise.

    What concerns sampling alone (spacing, clipping, the last alpha-bar) is not read: hdiscovery has
    its own DDIM.

    Args:
        config: The ``config`` of a scheduler with betas (DDPM, DDIM, …), or what its file holds.

    Raises:
        ValueError: If the network was trained to predict something else than the noise, or on
            another kind of schedule, naming the field.

    Example:
        >>> config = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
        ...           "num_train_timesteps": 1000}
        >>> schedule_from(config).num_train_steps
        1000
    """
    if (kind := prediction_of(config)) != "epsilon":
        raise ValueError(
            f"`prediction_type` of the diffusers scheduler is {kind!r}, expected 'epsilon': a "
            "model's file holds networks that predict the noise. Leave the model in its folder, "
            "which every command takes as it is."
        )
    return noise_schedule(config)


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """Return the noise schedule of a diffusers scheduler's config, whatever the network predicts.

    Raises:
        ValueError: As `schedule_from`, but for the prediction.
    """
    for field, value in NEUTRAL.items():
        if config.get(field, value) != value:
            raise ValueError(
                f"`{field}` of the diffusers scheduler is {config[field]!r}, expected {value!r}: "
                "hdiscovery samples on the schedule of the betas. Train the model so; another "
                "cannot be used."
            )
    return NoiseSchedule.from_betas(_betas(config))


def prediction_of(config: Mapping[str, Any]) -> str:
    """Return what a diffusers scheduler's config says that the network predicts."""
    older = "epsilon" if config.get("predict_epsilon", True) else "sample"
    return config.get("prediction_type", older)


def scheduler_config(schedule: NoiseSchedule) -> dict[str, Any]:
    """Return the arguments of the `DDIMScheduler` that samples as `chainograd.samplers.DDIM` does.

    With a number of steps M that divides T it visits T-1, T-1 - T/M, …, T/M - 1 and ends with the
    jump to clean data. With ``set_alpha_to_one=False`` it ends at index 0, and the grid equals
    ``time_grid(M, T, convention="author")``. With other M, diffusers jumps to times that it does
    not visit.

    Args:
        schedule: The noise schedule, with T training steps.

    Example:
        >>> scheduler_config(NoiseSchedule.linear())["beta_schedule"]
        'linear'
    """
    name = schedule_name(schedule)
    betas: dict[str, Any] = {"trained_betas": schedule.betas.tolist()}
    if name == "linear":
        first, last = schedule.betas[[0, -1]].tolist()
        betas = {"beta_schedule": "linear", "beta_start": first, "beta_end": last}
    elif name == "cosine":
        betas = {"beta_schedule": "squaredcos_cap_v2"}
    return {
        "num_train_timesteps": schedule.num_train_steps,
        **betas,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": False,
    }


def _betas(config: Mapping[str, Any]) -> Tensor:
    """Return the betas ``[T]`` in float64; diffusers computes the same in float32."""
    trained, kind = config.get("trained_betas"), config.get("beta_schedule")
    if trained is not None:
        return torch.as_tensor(trained, dtype=torch.float64)
    if kind not in BETAS:
        raise ValueError(
            f"`beta_schedule` of the diffusers scheduler is {kind!r}, expected "
            f"{' or '.join(map(repr, BETAS))}, or betas in `trained_betas`. To use another "
            "schedule, save the scheduler with its `betas` as `trained_betas`."
        )
    missing = [field for field in BETAS[kind] if field not in config]
    if missing:
        raise ValueError(
            f"`{missing[0]}` is missing in the config of the diffusers scheduler; its "
            f"`beta_schedule` {kind!r} needs it. Expected the file of a `save_pretrained`."
        )
    T, *ends = (config[field] for field in BETAS[kind])
    if not ends:
        return NoiseSchedule.cosine(T).betas
    # Of scaled_linear, the roots of the betas are evenly spaced.
    power = 1.0 if kind == "linear" else 0.5
    first, last = (end**power for end in ends)
    return torch.linspace(first, last, T, dtype=torch.float64) ** (1 / power)
