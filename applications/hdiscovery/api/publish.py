"""Name a run's directions, and write them for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from hdiscovery.api.files import refuse_existing
from hdiscovery.directions.about import Calibration
from hdiscovery.directions.config import run_config
from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.directions.labels import LABELS, read_labels
from hdiscovery.directions.open import open_directions
from hdiscovery.directions.portable import (
    FILE,
    PortableDirections,
    load_directions,
    save_directions,
)
from hdiscovery.directions.shipped import located, own_run
from hdiscovery.dm.device import device_of
from hdiscovery.editing.calibration import calibrate
from hdiscovery.editing.distance import FeatureName, build_features
from hdiscovery.editing.means import Means, measure_means
from hdiscovery.progress import Bars, counted, silent

Precision = Literal["float16", "float32"]


def publish_file(
    run: str | Path,
    out: str | Path | None = None,
    *,
    samples: int = 20,
    mean: bool = True,
    calibration_samples: int = 8,
    calibration_features: FeatureName = "encoder",
    seed: int = 0,
    dtype: Precision = "float16",
    overwrite: bool = False,
    device: str = "auto",
    progress: Bars = silent,
) -> Path:
    """Write a run's mean and global directions into one file to edit with.

    Args:
        run: Folder of a run, published or not. A run that comes with the package needs ``out``.
        out: The file; by default ``directions.safetensors`` in the run's folder.
        samples: Samples that the means are over.
        mean: Whether the mean directions are stored beside the global ones.
        calibration_samples: Samples to measure strengths of equal change on; 0 measures none.
        calibration_features: What change is measured by: the diffusion model's encoder, or pixels.
        seed: Of the samples.
        dtype: Precision of the file.
        overwrite: Whether a file may be replaced.
        device: ``"auto"`` (CUDA, if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
        progress: Makes a progress bar of a name.

    Returns:
        The file.

    Raises:
        FileExistsError: If the file is there and ``overwrite`` is false.
        FileNotFoundError: If there is no run.
        ValueError: If a number is out of range.
    """
    folder = own_run(Path(run)).path if out is None else located(Path(run))
    path = folder / FILE if out is None else Path(out)
    refuse_existing([path], overwrite)
    directions = open_directions(folder, device=device_of(device))
    means = _means(directions, samples, seed, getattr(torch, dtype), progress)
    about = replace(directions.about, samples=samples, seed=seed)
    if calibration_samples:
        about = replace(about, calibration=_calibration(
            directions, calibration_samples, calibration_features, seed, progress
        ))  # fmt: skip
    save_directions(path, PortableDirections(about, means.global_, means.mean if mean else None))
    return path


def label(source: str | Path, words: Sequence[str] = ()) -> list[str]:
    """Name directions of a run or of a portable file; return a line for each direction.

    The names of a run are kept in its ``labels.json``, where the gallery reads them.

    Args:
        source: Folder of a run, or a ``directions.safetensors``. Without words it may be the name
            of a run that comes with the package.
        words: ``K=TEXT`` each; an empty text takes a name away.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If a word names no direction, or the text would be taken for a direction.
    """
    path = Path(source) if words else located(Path(source))
    return _label_file(path, words) if path.is_file() else _label_run(path, words)


def _means(
    directions: DirectionSet, samples: int, seed: int, dtype: torch.dtype, progress: Bars
) -> Means:
    return measure_means(
        directions.dm, directions.f, directions.noise(samples, seed=seed), directions.grid,
        K=directions.K, t_stop=directions.t_stop, dtype=dtype,
        progress=counted(progress("means"), len(directions.times)),
    )  # fmt: skip


def _calibration(
    directions: DirectionSet, samples: int, features: FeatureName, seed: int, progress: Bars
) -> Calibration:
    x_T = directions.noise(samples, seed=seed)
    net = build_features(features, directions.dm)
    return calibrate(directions, net, x_T, progress=progress("calibration"))


def _label_run(path: Path, words: Sequence[str]) -> list[str]:
    run = own_run(path)
    K = run_config(run).shift.K
    known = read_labels(run, K=K)
    labels = changed([known.get(k, "") for k in range(K)], words)
    if words:
        # An empty one is written too, over a name that the run's file of directions may have.
        taken_away = {int(word.partition("=")[0]) for word in words} | known.keys()
        kept = {str(k): text for k, text in enumerate(labels) if text or k in taken_away}
        run.write_json(LABELS, kept)
    return [f"{k} ({text})" if text else str(k) for k, text in enumerate(labels)]


def _label_file(path: Path, words: Sequence[str]) -> list[str]:
    directions = load_directions(path, with_mean=bool(words))
    about = replace(directions.about, labels=changed(directions.about.labels, words))
    if words:
        save_directions(path, PortableDirections(about, directions.global_, directions.mean))
    scales = about.calibration.scales if about.calibration else (None,) * about.K
    return [
        about.title(k)
        + (f", {about.score_name} {score:.2f}" if score is not None else "")
        + (f", calibrated 1 is s = {scale:.2f}" if scale is not None else "")
        for k, (score, scale) in enumerate(zip(about.scores, scales, strict=True))
    ]


def changed(labels: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    """Return labels with those that ``K=TEXT`` words name replaced.

    Raises:
        ValueError: If a word names no direction, or the text would be taken for one.

    Example:
        >>> changed(["", "round"], ["0=thick", "1="])
        ('thick', '')
    """
    new = list(labels)
    for word in words:
        which, equals, text = word.partition("=")
        if not (equals and which.isdecimal() and int(which) < len(new)):
            raise ValueError(
                f"{word!r} does not name a direction: write K=TEXT with K in 0 … {len(new) - 1}."
            )
        if text.isdecimal():
            raise ValueError(f"{word!r}: a label that is a number would be taken for a direction.")
        new[int(which)] = text
    return tuple(new)
