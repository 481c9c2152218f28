"""A diffusion model in one file: weights, architecture and noise schedule together."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_state import load_state
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.file_kind import kind_of
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.schedules import SCHEDULES, ScheduleName
from hdiscovery.dm.tensors import save_tensors

FORMAT = "hdiscovery-dm-1"


def save_dm(
    path: Path,
    unet: ADMUNet,
    *,
    schedule: ScheduleName = "linear",
    T: int = 1000,
    dtype: torch.dtype = torch.float16,
    **about: Any,
) -> None:
    """Write a diffusion model as safetensors, its whole config in the metadata.

    Args:
        path: File to write; replaced only when the new one is complete.
        unet: The network.
        schedule: Name of its noise schedule.
        T: Number of training steps of the schedule.
        dtype: Precision of the file.
        about: Anything else worth keeping with the weights (data, training), JSON-able.
    """
    metadata = {
        "format": FORMAT,
        "unet": json.dumps(asdict(unet.config)),
        "schedule": json.dumps({"name": schedule, "num_train_steps": T}),
        "about": json.dumps(about),
    }
    state = {key: value.to(dtype) for key, value in unet.state_dict().items()}
    save_tensors(path, state, metadata=metadata)


def read_dm(path: Path) -> DiffusionModel:
    """Read what `save_dm` wrote: a diffusion model on the CPU, frozen and in eval mode.

    Raises:
        ValueError: If the file is damaged or of another kind, or if its weights do not fit the
            architecture that it names.
    """
    metadata = read_metadata(path)
    try:
        state = load_file(path)
        config = config_from(json.loads(metadata["unet"]))
        noise = json.loads(metadata["schedule"])
        schedule = SCHEDULES[noise["name"]](noise["num_train_steps"])
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"`dm` {path} is damaged: {error}.") from error
    unet = ADMUNet(config)
    load_state(unet, {key: value.float() for key, value in state.items()}, path)
    return DiffusionModel(unet.requires_grad_(False).eval(), schedule, path.stem)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a diffusion model's file.

    Raises:
        ValueError: If the file is damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"`dm` {path} cannot be read as safetensors: it is truncated or of another kind. By "
            f"its first bytes it is {kind_of(path)} ({error}). Expected a file that `hdiscovery "
            "pretrain` or `hdiscovery convert` wrote."
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"`dm` {path} does not say which architecture it holds (metadata 'format' is "
            f"{metadata.get('format')!r}, expected {FORMAT!r}). `hdiscovery convert` makes such a "
            "file of published ADM and PDAE weights."
        )
    return metadata


def config_from(entries: dict[str, Any]) -> UNetConfig:
    """Return the config of a JSON object; unknown entries are refused."""
    unknown = set(entries) - {field.name for field in fields(UNetConfig)}
    if unknown:
        raise ValueError(f"unknown architecture fields {sorted(unknown)}")
    fixed: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()
    }
    return UNetConfig(**fixed)
