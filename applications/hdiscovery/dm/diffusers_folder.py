"""A diffusion model as a folder of diffusers' (``unet/``, ``scheduler/``), and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from hdiscovery.dm.adm_unet import ADMUNet, UNetConfig
from hdiscovery.dm.diffusers_schedule import schedule_from, schedule_name, scheduler_config
from hdiscovery.dm.export.diffusers_unet import from_diffusers, import_diffusers, to_diffusers
from hdiscovery.dm.files import DiffusionModel, save_dm

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel


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
                "takes neither variances nor classes. In Python, `to_diffusers(dm.unet)` gives the "
                "network alone."
            )
    if folder.exists():
        raise FileExistsError(f"`out` {folder} exists. Remove it, or choose another name.")
    diffusers = import_diffusers("write_folder")
    scheduler = diffusers.DDIMScheduler(**scheduler_config(dm.schedule))
    partial = folder.with_name(folder.name + ".partial")
    diffusers.DDIMPipeline(to_diffusers(dm.adm).float(), scheduler).save_pretrained(partial)
    partial.replace(folder)


def open_folder(folder: Path) -> DiffusionModel:
    """Load the diffusion model of a diffusers pipeline's folder as it is, frozen, in eval mode.

    Args:
        folder: It holds ``unet/`` with a `UNet2DModel` and ``scheduler/``, as the `save_pretrained`
            of `DDPMPipeline` and `DDIMPipeline` writes them. Predictions of v and of x_0 are turned
            into the noise.

    Raises:
        FileNotFoundError: If one of the two is not there.
        ImportError: If diffusers is not installed.
        ValueError: If a file is damaged, or the network's h-space or its schedule not supported.
    """
    from hdiscovery.dm.diffusers_model import diffusers_model

    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
    return diffusers_model(read_unet(folder), scheduler, name=folder.resolve().name)


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


def read_unet(folder: Path) -> UNet2DModel:
    """Load the network of a diffusers pipeline's folder, all of its weights or none."""
    kind = read_config(folder / "unet" / "config.json").get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(
            f"`_class_name` in {folder / 'unet'} is {kind!r}, expected 'UNet2DModel'. A "
            "UNet2DConditionModel needs its condition: in Python, "
            "`hdiscovery.dm.diffusers_model.diffusers_model(unet, scheduler, condition=…)`."
        )
    try:
        unet, report = import_diffusers("read_folder").UNet2DModel.from_pretrained(
            folder / "unet", output_loading_info=True, local_files_only=True
        )
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"`weights` {folder / 'unet'} cannot be loaded as a UNet2DModel: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    # Where weights are missing, diffusers goes on with random ones.
    misfits = [
        f"{len(names)} {what} ({', '.join(map(str, list(names)[:3]))})"
        for what, names in report.items()
        if names
    ]
    if misfits:
        raise ValueError(
            f"`weights` in {folder / 'unet'} do not fit the config.json beside them: "
            f"{'; '.join(misfits)}. Save the model again with `save_pretrained`."
        )
    return unet


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
            f"The noise schedule of {folder} ({', '.join(said)}) is none that a model's file can "
            "name: 'linear', of 1e-4 to 0.02 at 1000 steps, or 'squaredcos_cap_v2'. Leave the "
            "model in its folder, which every command takes as it is."
        )
    T = dm.schedule.num_train_steps
    save_dm(out, dm.adm, schedule=name, T=T, dtype=_smallest_dtype(dm.adm), weights=dm.name)
    return dm.config


def read_config(path: Path) -> dict[str, Any]:
    """Return a config of diffusers' from its file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"`weights` {path.parent.parent} has no {path.parent.name}/{path.name}. Expected the "
            "folder of a diffusers pipeline, with unet/ and scheduler/; a scheduler alone is "
            "written by `DDPMScheduler(...).save_pretrained(FOLDER / 'scheduler')`."
        )
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"`weights` {path} is damaged: {error}.") from error


def _smallest_dtype(unet: ADMUNet) -> torch.dtype:
    """Return float16 if that keeps every weight to the bit, else float32."""
    exact = all(torch.equal(value.half().to(value), value) for value in unet.state_dict().values())
    return torch.float16 if exact else torch.float32
