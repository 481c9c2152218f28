"""Directions in one file, ``directions.safetensors``, that an editor runs from without a run.

Tensors: ``global`` ``[K, C, H, W]`` and, unless it was left out, ``mean`` ``[K, T_s, C, H, W]``,
float16 unless asked otherwise. Metadata: ``format``, and ``about``, the JSON of `About`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hdiscovery.directions.about import About, Calibration
from hdiscovery.dm.file_kind import kind_of
from hdiscovery.dm.tensors import save_tensors

FORMAT = "hdiscovery-directions-1"
FILE = "directions.safetensors"  # its name in a run's folder


@dataclass(frozen=True, slots=True, eq=False)
class PortableDirections:
    """The content of a file.

    Attributes:
        about: All but the tensors.
        global_: ``[K, C, H, W]``.
        mean: ``[K, T_s, C, H, W]``, or None.
    """

    about: About
    global_: Tensor
    mean: Tensor | None


def save_directions(path: Path, directions: PortableDirections) -> Path:
    """Write directions; a file that is there is replaced only when the new one is complete."""
    tensors = {"global": directions.global_}
    if directions.mean is not None:
        tensors["mean"] = directions.mean
    path.parent.mkdir(parents=True, exist_ok=True)
    about = json.dumps(asdict(directions.about))
    return save_tensors(path, tensors, metadata={"format": FORMAT, "about": about})


def load_directions(path: Path, *, with_mean: bool = True) -> PortableDirections:
    """Read directions.

    Args:
        path: A file that `save_directions` wrote.
        with_mean: Whether to read the mean directions too, much the larger part.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path} of directions; `hdiscovery publish RUN --to file` writes one."
        )
    try:
        with safe_open(path, framework="pt") as file:
            about = _about(path, file.metadata() or {})
            names = set(file.keys())
            mean = file.get_tensor("mean") if with_mean and "mean" in names else None
            directions = PortableDirections(about, file.get_tensor("global"), mean)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as safetensors: it is truncated or of another kind. By its "
            f"first bytes it is {kind_of(path)} ({error}). `hdiscovery publish RUN --to file` "
            "writes a file of directions."
        ) from error
    _check(path, directions)
    return directions


def _about(path: Path, metadata: dict[str, str]) -> About:
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} does not hold directions (metadata 'format' is {metadata.get('format')!r}, "
            f"expected {FORMAT!r}). `hdiscovery publish RUN --to file` writes such a file."
        )
    try:
        entries: dict[str, Any] = json.loads(metadata["about"])
        unknown = set(entries) - {field.name for field in fields(About)}
        if unknown:
            raise ValueError(f"unknown entries {sorted(unknown)}")
        for name in ("times", "labels", "scores"):
            entries[name] = tuple(entries[name])
        if entries["calibration"] is not None:
            calibration = entries["calibration"]
            calibration["scales"] = tuple(calibration["scales"])
            entries["calibration"] = Calibration(**calibration)
        return About(**entries)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"What {path} says about its directions is damaged: {error}.") from error


def _check(path: Path, directions: PortableDirections) -> None:
    about, shape = directions.about, tuple(directions.global_.shape)
    problems = []
    if len(shape) != 4 or shape[0] != about.K:
        problems.append(f"'global' is {list(shape)}, expected [{about.K}, C, H, W]")
    expected = (about.K, len(about.times), *shape[1:])
    if directions.mean is not None and tuple(directions.mean.shape) != expected:
        problems.append(f"'mean' is {list(directions.mean.shape)}, expected {list(expected)}")
    for name, value in (("global", directions.global_), ("mean", directions.mean)):
        if value is not None and not torch.isfinite(value).all():
            problems.append(f"{name!r} is not finite")
    if problems:
        raise ValueError(f"The directions in {path} are damaged: {'; '.join(problems)}.")
