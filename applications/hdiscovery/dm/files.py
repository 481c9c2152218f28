"""A diffusion model in one file: weights, architecture and noise schedule together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from chainograd.samplers.schedule import NoiseSchedule
from hdiscovery.dm.adm_unet import ADMUNet, UNetConfig
from hdiscovery.dm.hspace import HSpaceUNet
from hdiscovery.dm.tensors import save_tensors

FORMAT = "hdiscovery-dm-1"
PUBLISHED = (".pt", ".pth", ".ckpt", ".bin")  # what torch.save writes
ScheduleName = Literal["linear", "cosine"]
SCHEDULES: dict[ScheduleName, Callable[[int], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "cosine": NoiseSchedule.cosine,
}


@dataclass(frozen=True, slots=True, eq=False)
class DiffusionModel:
    """A noise-prediction network and the schedule it was trained with.

    Attributes:
        unet: The network, in eval mode, its weights frozen.
        schedule: The noise schedule.
        name: Where it came from, for records.
    """

    unet: HSpaceUNet
    schedule: NoiseSchedule
    name: str

    @property
    def config(self) -> UNetConfig:
        """The architecture of an ADM network.

        Raises:
            ValueError: If it is another network.
        """
        return self.adm.config

    @property
    def adm(self) -> ADMUNet:
        """The network, if it is ADM's.

        Raises:
            ValueError: If it is another network.
        """
        if not isinstance(self.unet, ADMUNet):
            # Not a TypeError: the command line's user chose the model, and can choose another.
            raise ValueError(
                f"`dm` {self.name} is a {type(self.unet).__name__}, and this works for ADM's UNet "
                "only. `hdiscovery convert` makes one of a diffusers folder, where they agree."
            )
        return self.unet

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of one image."""
        return self.unet.image_shape


def shipped_models() -> dict[str, Path]:
    """Return the weight files that come with the package, by name."""
    folder = resources.files("hdiscovery") / "weights"
    return {Path(str(f)).stem: Path(str(f)) for f in folder.iterdir() if f.name.endswith("tensors")}


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


def load_dm(source: str | Path, *, device: torch.device | str = "cpu") -> DiffusionModel:
    """Load a diffusion model, frozen and in eval mode.

    Args:
        source: A file written by `save_dm`; the name of a shipped model; or the folder of a
            diffusers pipeline with a `UNet2DModel`, which is used as it is.
        device: Where the weights go.

    Raises:
        FileNotFoundError: If there is nothing of that name.
        ImportError: If it is a diffusers folder, and diffusers is not installed.
        ValueError: If the file is damaged, is not a diffusion model's, or does not fit the
            architecture that it names; of published weights, with the command that makes a file
            of them.
    """
    path = shipped_models().get(str(source), Path(source))
    if path.is_dir():
        from hdiscovery.dm.diffusers_folder import open_folder

        dm = open_folder(path)
        dm.unet.to(device)
        return dm
    if not path.is_file():
        raise FileNotFoundError(
            f"`dm` {str(source)!r} is neither a weight file, nor a diffusers folder, nor a shipped "
            f"model; shipped are: {', '.join(sorted(shipped_models())) or 'none'}."
        )
    if is_published(path):
        from hdiscovery.dm.adm_weights import refuse_unconverted

        refuse_unconverted(path)
    metadata = read_metadata(path)
    try:
        state = load_file(path)
        config = config_from(json.loads(metadata["unet"]))
        noise = json.loads(metadata["schedule"])
        schedule = SCHEDULES[noise["name"]](noise["num_train_steps"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"`dm` {path} is damaged: {error}.") from error
    unet = ADMUNet(config)
    load_state(unet, {key: value.float() for key, value in state.items()}, path)
    unet.requires_grad_(False).eval().to(device)
    return DiffusionModel(unet, schedule, path.stem)


def is_published(path: Path) -> bool:
    """Return whether a file is published weights, and no diffusion model's, by its head.

    A safetensors file of ADM's tensors that says nothing of its architecture is one of them.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return path.suffix in PUBLISHED
    try:
        with safe_open(path, framework="pt") as file:
            named = (file.metadata() or {}).get("format") == FORMAT
            return not named and "input_blocks.0.0.weight" in file.keys()  # noqa: SIM118
    except (SafetensorError, OSError):
        return False  # the reader says why


def read_metadata(path: Path) -> dict[str, str]:
    """Return a weight file's metadata, or say why it is none of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"`dm` {path} cannot be read as safetensors ({error}): the file is truncated or of "
            "another kind. Expected a file that `hdiscovery pretrain` or `convert` wrote."
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"`dm` {path} does not say which architecture it holds (metadata 'format' is "
            f"{metadata.get('format')!r}, expected {FORMAT!r}). Published ADM "
            "and PDAE weights become such a file by `hdiscovery convert`."
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


def load_state(unet: ADMUNet, state: dict[str, torch.Tensor], source: Path | str) -> None:
    """Load a state dict strictly; a misfit says what was expected and what was found.

    Raises:
        ValueError: If keys or shapes differ.
    """
    check_state(unet, state, source)
    unet.load_state_dict(state)


def check_state(unet: ADMUNet, state: Mapping[str, torch.Tensor], source: Path | str) -> None:
    """Refuse a state dict that does not fit, as `load_state` does, without loading it."""
    expected = unet.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [
        f"{key}: expected {tuple(expected[key].shape)}, found {tuple(state[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if expected[key].shape != state[key].shape
    ]
    problems = [
        f"{len(found)} {what} ({', '.join(found[:3])}{', …' if len(found) > 3 else ''})"
        for what, found in (
            ("missing", missing),
            ("unexpected", extra),
            ("of another shape", wrong),
        )
        if found
    ]
    if problems:
        raise ValueError(
            f"The weights of {source} do not fit the architecture {unet.config}, which has "
            f"{len(expected)} tensors: {'; '.join(problems)}."
        )
