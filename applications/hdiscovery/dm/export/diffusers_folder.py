"""A diffusion model written as a folder of diffusers', and such a folder turned into one file."""

from __future__ import annotations

from pathlib import Path

import torch

from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.diffusers_folder import read_config, read_unet
from hdiscovery.dm.diffusers_model import import_diffusers
from hdiscovery.dm.diffusers_schedule import schedule_from, scheduler_config
from hdiscovery.dm.export.diffusers_unet import from_diffusers, to_diffusers
from hdiscovery.dm.files import save_dm
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.schedules import schedule_name


def write_folder(dm: DiffusionModel, folder: Path) -> None:
    """Write a diffusion model as a folder that diffusers' `DDIMPipeline` loads, in float32.

    Args:
        dm: The diffusion model.
        folder: The folder to write; it appears only when it is complete.

    Raises:
        FileExistsError: If ``folder`` exists.
        ImportError: If diffusers is not installed.
        ValueError: If no model of diffusers computes the same, or no `DDIMPipeline` samples it.
    """
    for field in ("learn_sigma", "num_classes"):
        if getattr(dm.config, field):
            raise ValueError(
                f"`{field}` of the model is {getattr(dm.config, field)}: diffusers' DDIMPipeline "
                "takes neither variances nor classes. In Python, `to_diffusers(dm.unet)` returns "
                "the network alone."
            )
    if folder.exists():
        raise FileExistsError(f"`out` {folder} exists. Remove it, or choose another name.")
    diffusers = import_diffusers("write_folder")
    scheduler = diffusers.DDIMScheduler(**scheduler_config(dm.schedule))
    partial = folder.with_name(folder.name + ".partial")
    diffusers.DDIMPipeline(to_diffusers(dm.adm).float(), scheduler).save_pretrained(partial)
    partial.replace(folder)


def read_folder(folder: Path) -> DiffusionModel:
    """Load the diffusion model of a diffusers pipeline's folder as an ADM UNet.

    Args:
        folder: As for `open_folder`.

    Raises:
        FileNotFoundError: If one of the two is not there.
        ImportError: If diffusers is not installed.
        ValueError: If a file is damaged, or hdiscovery has no counterpart of what it describes.
    """
    schedule = schedule_from(read_config(folder / "scheduler" / "scheduler_config.json"))
    ours = from_diffusers(read_unet(folder)).requires_grad_(False).eval()
    return DiffusionModel(ours, schedule, folder.resolve().name)


def convert_folder(folder: Path, out: Path) -> UNetConfig:
    """Write the diffusion model of a diffusers pipeline's folder as one file.

    Args:
        folder: As for `read_folder`.
        out: The ``.safetensors`` file to write. It is in float16 where that keeps every weight to
            the bit, otherwise in float32.

    Returns:
        The architecture.

    Raises:
        FileExistsError: If ``out`` exists.
        ValueError: As for `read_folder`, and if the file cannot hold the noise schedule.
    """
    if out.exists():
        raise FileExistsError(f"`out` {out} exists. Remove it, or choose another name.")
    dm = read_folder(folder)
    name = schedule_name(dm.schedule)
    if name is None:
        fields = ("beta_schedule", "beta_start", "beta_end", "trained_betas")
        config = read_config(folder / "scheduler" / "scheduler_config.json")
        said = [f"`{field}` {str(config[field])[:20]}" for field in fields if config.get(field)]
        raise ValueError(
            f"A model's file cannot name the noise schedule of {folder} ({', '.join(said)}). It "
            "can name 'linear', of 1e-4 to 0.02 at 1000 steps, and 'squaredcos_cap_v2'. Leave the "
            "model in its folder, which every command takes as it is."
        )
    T = dm.schedule.num_train_steps
    save_dm(out, dm.adm, schedule=name, T=T, dtype=_smallest_dtype(dm.adm), weights=dm.name)
    return dm.config


def _smallest_dtype(unet: ADMUNet) -> torch.dtype:
    """Return float16 if that keeps every weight to the bit, else float32."""
    exact = all(torch.equal(value.half().to(value), value) for value in unet.state_dict().values())
    return torch.float16 if exact else torch.float32
