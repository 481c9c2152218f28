"""Published ADM and PDAE weights, turned into a diffusion model's file."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdiscovery.models.adm_unet import TABLE_3, ADMUNet, UNetConfig
from hdiscovery.models.dm import config_from, load_state, save_dm


def convert(weights: Path, architecture: str, out: Path) -> UNetConfig:
    """Write the diffusion model of a published ``.pt`` file, in its own precision.

    A state dict does not tell its architecture (heads, attention order and image size leave no
    trace in it), so it is named; the weights must then fit it exactly.

    Args:
        weights: ADM's ``ema_*.pt``, or PDAE's ``.pt``, of which the averaged weights are taken.
        architecture: A row of the paper's Table 3 (``MNIST32``, ``Anime64``, ``CelebAHQ128``,
            ``AFHQ128``), or a JSON file with the fields of `UNetConfig`.
        out: The ``.safetensors`` file to write.

    Returns:
        The architecture.

    Raises:
        FileNotFoundError: If there is no such file of weights.
        FileExistsError: If ``out`` exists.
        ValueError: If one of the files is damaged, or they do not fit each other.
    """
    if out.exists():
        raise FileExistsError(f"`out` {out} exists. Remove it, or choose another name.")
    config = read_architecture(architecture)
    state = read_weights(weights)
    unet = ADMUNet(config)
    load_state(unet, state, weights)
    dtypes = {value.dtype for value in state.values()}
    save_dm(
        out,
        unet,
        dtype=torch.float16 if dtypes == {torch.float16} else torch.float32,
        weights=weights.name,
    )
    return config


def read_architecture(architecture: str) -> UNetConfig:
    """Return the architecture of that name, or that a JSON file holds."""
    if architecture in TABLE_3:
        return TABLE_3[architecture]
    path = Path(architecture)
    if not path.is_file():
        raise ValueError(
            f"`architecture` {architecture!r} is neither one of {', '.join(TABLE_3)} nor a JSON "
            "file with the fields of UNetConfig."
        )
    try:
        return config_from(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"`architecture` {path} does not describe a UNet: {error}.") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the UNet's state dict of a published file; the average, where there are two."""
    if not path.is_file():
        raise FileNotFoundError(f"`weights` {path} is not a file.")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"`weights` {path} cannot be read as tensors: it is truncated or of another kind "
            f"({str(error).splitlines()[0]})."
        ) from error
    if isinstance(content, Mapping) and "ema_denoise_fn" in content:  # PDAE
        content = content["ema_denoise_fn"]
    if not isinstance(content, Mapping) or "param_groups" in content:
        raise ValueError(
            f"`weights` {path} holds no state dict of a UNet. ADM's is named `ema_*.pt`; `opt*.pt` "
            "beside it is its optimizer's."
        )
    strangers = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ValueError(
            f"`weights` {path} holds more than tensors ({', '.join(strangers[:3])}). Expected a "
            "state dict, or PDAE's file with `ema_denoise_fn`."
        )
    return dict(content)
