"""A diffusion model as a folder of diffusers' (``unet/``, ``scheduler/``), and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from hdiscovery.dm.diffusers_model import diffusers_model, import_diffusers
from hdiscovery.dm.model import DiffusionModel

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel


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
    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
    return diffusers_model(read_unet(folder), scheduler, name=folder.resolve().name)


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
    _refuse_misfits(folder, report)
    return unet


def _refuse_misfits(folder: Path, report: Mapping[str, Any]) -> None:
    """Refuse weights that are missing or left over: diffusers goes on with random ones.

    Raises:
        ValueError: If there are any.
    """
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
