"""A diffusion model made of diffusers' network and scheduler, without conversion."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from hdiscovery.dm.conditioned import Condition, under
from hdiscovery.dm.diffusers_schedule import noise_schedule, prediction_of
from hdiscovery.dm.diffusers_unets import ConditionUNet, DiffusersUNet, UnconditionalUNet
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.prediction import predicts_noise


def diffusers_model(
    unet: Any,
    scheduler: Any,
    *,
    condition: Condition | None = None,
    image_size: int | None = None,
    name: str = "diffusers",
) -> DiffusionModel:
    """Return the diffusion model of a diffusers network and its scheduler.

    Of the scheduler, the betas and the ``prediction_type`` are read: hdiscovery has its own DDIM.
    Predictions of v or of x_0 are turned into the noise.

    Args:
        unet: A `UNet2DModel` or `UNet2DConditionModel`. It is shared, not copied: its weights are
            frozen and it is put in eval mode.
        scheduler: The scheduler that it was trained with, or its config.
        condition: What a conditional network is conditioned on, the same for all samples: the
            index of a class; ``encoder_hidden_states`` ``[1, L, D]``; or a mapping of tensors
            ``[1, …]`` with the names of its ``forward``. There is no classifier-free guidance.
        image_size: Pixels (or latents) along an edge; None is the network's ``sample_size``.
        name: For records.

    Raises:
        ImportError: If diffusers is not installed.
        ValueError: If the network's h-space or the schedule is not supported, naming the field; or
            if a condition is missing or not wanted.

    Example:
        >>> from diffusers import DDPMScheduler, UNet2DModel
        >>> unet = UNet2DModel(16, block_out_channels=(32, 64), norm_num_groups=8,
        ...                    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        ...                    up_block_types=("AttnUpBlock2D", "UpBlock2D"))
        >>> diffusers_model(unet, DDPMScheduler(prediction_type="v_prediction")).unet.h_shape
        (64, 8, 8)
    """
    ours = backbone(unet, image_size)
    config = getattr(scheduler, "config", scheduler)
    schedule = noise_schedule(config)
    known = unet.config.get("num_train_timesteps") or schedule.num_train_steps
    if known < schedule.num_train_steps:
        raise ValueError(
            f"`num_train_timesteps` of the diffusers model is {known}, its scheduler has "
            f"{schedule.num_train_steps}: later times have no embedding. Pass the scheduler that "
            "the model was trained with."
        )
    unet.requires_grad_(False)
    network = predicts_noise(ours, schedule, prediction_of(config)).eval()
    dm = DiffusionModel(network, schedule, name)
    conditional = isinstance(ours, ConditionUNet) or unet.class_embedding is not None
    if conditional != (condition is not None):
        raise ValueError(
            f"`condition` is {'missing' if conditional else 'given'}, and the network {name!r} is "
            f"{'conditional' if conditional else 'not conditional'}: a conditional one needs it, "
            "and no other takes it. In Python, `diffusers_model(unet, scheduler, condition=…)`."
        )
    return dm if condition is None else under(dm, condition)


def backbone(unet: Any, image_size: int | None = None) -> DiffusersUNet:
    """Return a diffusers network, split where h-space is.

    Raises:
        ImportError: If diffusers is not installed.
        ValueError: If it is another network, or its h-space is not supported.
    """
    diffusers = import_diffusers("diffusers_model")
    if isinstance(unet, diffusers.UNet2DModel):
        return UnconditionalUNet(unet, image_size)
    if isinstance(unet, diffusers.UNet2DConditionModel):
        return ConditionUNet(unet, image_size)
    raise ValueError(
        f"`unet` is a {type(unet).__name__}, expected a UNet2DModel or a UNet2DConditionModel: "
        "h-space is what lies between a UNet's two halves."
    )


def import_diffusers(user: str) -> ModuleType:
    """Return the diffusers library; its absence names ``user`` and the extra that brings it."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            f"`{user}` needs the diffusers library ({error}): pip install 'chainograd[diffusers]'."
        ) from error
    return diffusers
