"""Opens a diffusion model: a file, a shipped model, or a folder of diffusers'."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch

from hdiscovery.dm.adm_weights import is_adm_weights
from hdiscovery.dm.conversion import refuse_unconverted
from hdiscovery.dm.diffusers_folder import open_folder
from hdiscovery.dm.files import read_dm
from hdiscovery.dm.model import DiffusionModel


def load_dm(source: str | Path, *, device: torch.device | str = "cpu") -> DiffusionModel:
    """Load a diffusion model, frozen and in eval mode.

    Args:
        source: A file written by `save_dm`; the name of a shipped model; or the folder of a
            diffusers pipeline with a `UNet2DModel`, which is used as it is.
        device: Where the weights go.

    Raises:
        FileNotFoundError: If nothing has that name.
        ImportError: If it is a diffusers folder, and diffusers is not installed.
        ValueError: If the file is damaged, does not hold a diffusion model, or does not fit the
            architecture that it names. For published weights, the error holds the command that
            converts them.
    """
    path = shipped_models().get(str(source), Path(source))
    if not str(source) or not path.exists():
        raise FileNotFoundError(
            f"`dm` {str(source)!r} is neither a weight file, nor a diffusers folder, nor a shipped "
            f"model; shipped are: {', '.join(sorted(shipped_models())) or 'none'}."
        )
    if path.is_dir():
        dm = open_folder(path)
    elif is_adm_weights(path):
        refuse_unconverted(path)
    else:
        dm = read_dm(path)
    dm.unet.to(device)
    return dm


def shipped_models() -> dict[str, Path]:
    """Return the weight files that come with the package, by name."""
    folder = resources.files("hdiscovery") / "weights"
    return {Path(str(f)).stem: Path(str(f)) for f in folder.iterdir() if f.name.endswith("tensors")}
