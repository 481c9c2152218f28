"""Published ADM and PDAE weights, as their authors' files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from hdiscovery.dm.file_kind import kind_of
from hdiscovery.dm.files import FORMAT
from hdiscovery.dm.inferred import Inferred, infer

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")  # what torch.save writes


def is_adm_weights(path: Path) -> bool:
    """Return whether a file holds published weights rather than a diffusion model.

    The suffix decides, and for safetensors the header: ADM's tensors without an architecture.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return path.suffix in SUFFIXES
    try:
        with safe_open(path, framework="pt") as file:
            named = (file.metadata() or {}).get("format") == FORMAT
            return not named and "input_blocks.0.0.weight" in file.keys()  # noqa: SIM118
    except (SafetensorError, OSError):
        return False  # whoever reads the file says why


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the UNet's state dict of a published file.

    Args:
        path: ADM's ``ema_*.pt`` or ``model*.pt``; PDAE's ``.pt``, of which the averaged weights are
            taken; or a state dict as ``.safetensors``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds something else, such as an optimizer's state.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`weights` {path} is not a file.")
    content = _read(path)
    if isinstance(content, Mapping) and "ema_denoise_fn" in content:  # PDAE
        content = content["ema_denoise_fn"]
    _refuse_other_content(content, path)
    return dict(content)


def inferred_of(state: dict[str, Tensor], source: Path) -> Inferred:
    """Return what can be inferred from a state dict; an error names the file.

    Raises:
        ValueError: If the state dict is not an ADM UNet's.
    """
    try:
        return infer(state)
    except ValueError as error:
        raise ValueError(f"`weights` {source}: {error}") from error


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever a file of another kind leads it to
        said = (str(error).strip().splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {said}".removesuffix(": ")
        raise ValueError(
            f"`weights` {path} cannot be read as tensors: it is truncated or of another kind. By "
            f"its first bytes it is {kind_of(path)} ({reason}). Expected ADM's ema_*.pt or "
            "model*.pt, PDAE's .pt, or a state dict as .safetensors."
        ) from error


def _refuse_other_content(content: Any, path: Path) -> None:
    if isinstance(content, Mapping) and "param_groups" in content:
        raise ValueError(
            f"`weights` {path} is the state of an optimizer (`param_groups`): what Adam remembers "
            f"of {len(content.get('state', ()))} parameters, not the parameters. Of "
            "guided-diffusion's three files, `ema_*.pt` is the one to take, not `opt*.pt`."
        )
    if not isinstance(content, Mapping):
        raise ValueError(
            f"`weights` {path} holds no state dict of a UNet but a {type(content).__name__}."
        )
    strangers = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ValueError(
            f"`weights` {path} holds more than tensors ({', '.join(strangers[:3])}). Expected a "
            "state dict, or PDAE's file with `ema_denoise_fn`."
        )
