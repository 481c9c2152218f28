"""Where directions come from: a run with its shift block, or a file without."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from chainograd.samplers import time_grid
from hdiscovery.directions.about import About
from hdiscovery.directions.fingerprint import dm_hash, weights_hash
from hdiscovery.directions.fixed import GlobalDirections, MeanDirections
from hdiscovery.directions.portable import PortableDirections, load_directions
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import open_networks
from hdiscovery.directions.shipped import located
from hdiscovery.directions.step import Directions
from hdiscovery.directions.times import shifted_times
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.open import load_dm

FILE = "directions.safetensors"  # in a run's folder
Kind = Literal["direct", "mean", "global"]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Directions, the model they act in, and how they were found.

    Attributes:
        dm: The frozen diffusion model.
        directions: What shifts h.
        about: Everything else.
        kind: Whether the shift block answers, or its means.
    """

    dm: DiffusionModel
    directions: Directions
    about: About
    kind: Kind


def open_source(
    path: Path,
    kind: Kind | None = None,
    *,
    dm: str | None = None,
    another_dm: bool = False,
    device: torch.device | str = "cpu",
) -> Source:
    """Open directions.

    Args:
        path: A run's folder, the name of a shipped run, or a file as `save_directions` writes it.
        kind: Which of the three; by default the shift block of a run, the mean directions of a
            file, and its global ones where it has no mean.
        dm: Diffusion model to take instead of the one that a file names.
        another_dm: Whether directions of a file may act in another diffusion model than theirs.
        device: Where the networks go.

    Raises:
        FileNotFoundError: If there is nothing at ``path``, or a run has no file of means yet.
        ValueError: If ``kind`` is not there, or the diffusion model is another one.
    """
    path = located(path)
    if path.is_dir():
        if dm is not None or another_dm:
            raise ValueError(
                f"The run {path} has its diffusion model; `--dm` and `--another-dm` go with a file "
                f"of directions, such as {path / FILE}."
            )
        direct = open_run_source(path, device=device)
        if kind in (None, "direct"):
            return direct
        file = load_directions(path / FILE)
        check_measured_from(direct, file.about, path / FILE)
        return Source(direct.dm, _fixed(file, kind, path / FILE, device), file.about, kind)
    file = load_directions(path, with_mean=kind != "global")
    if kind == "direct":
        raise ValueError(
            f"{path} holds means only; for the direct directions pass the run's folder, which has "
            "the shift block."
        )
    kind = kind or ("global" if file.mean is None else "mean")
    model = _model(file, path, dm, another_dm, device)
    return Source(model, _fixed(file, kind, path, device), file.about, kind)


def open_run_source(path: Path, *, device: torch.device | str = "cpu") -> Source:
    """Open a run's own directions.

    Labels are those of ``labels.json``, else of the run's file of directions; calibrated strengths
    are the file's, if it was measured from the shift block as it is now.
    """
    from hdiscovery.directions.labels import read_labels

    discovery, _ = open_networks(RunFolder.open(path), device=device)
    config, dm = discovery.config, discovery.dm
    shift_block = discovery.shift_block.eval().requires_grad_(False)
    run = RunFolder(path)
    grid = time_grid(
        config.sampling.M, dm.schedule.num_train_steps, convention=config.sampling.grid
    )
    about = About(
        dm=config.model.dm,
        dm_hash=dm_hash(dm),
        shift_block_hash=weights_hash(shift_block),
        K=config.shift.K,
        S=config.shift.S,
        M=config.sampling.M,
        t_stop=config.shift.t_stop,
        grid=config.sampling.grid,
        update=config.shift.update,
        times=shifted_times(grid, config.shift.t_stop),
        labels=("",) * config.shift.K,
        **_scores(run, config.shift.K),
    )
    if (path / FILE).is_file():
        measured = load_directions(path / FILE, with_mean=False).about
        if measured.K == about.K:
            about = replace(about, labels=measured.labels)
        if measured.shift_block_hash == about.shift_block_hash:
            about = replace(about, calibration=measured.calibration)
    named = read_labels(run, K=config.shift.K)
    labels = tuple(named.get(k, label) for k, label in enumerate(about.labels))
    about = replace(about, labels=labels)
    return Source(dm, shift_block, about, "direct")


def check_measured_from(source: Source, about: About, path: Path) -> None:
    """Refuse means that are not those of a run's shift block as it is now.

    Raises:
        ValueError: If they are not.
    """
    if about.shift_block_hash != source.about.shift_block_hash:
        raise ValueError(
            f"{path} was measured from another state of the shift block: the run has been trained "
            "since, or the file is another run's. Measure again by `hdiscovery directions RUN "
            "--overwrite`."
        )


def _fixed(
    file: PortableDirections, kind: Kind, path: Path, device: torch.device | str
) -> Directions:
    if kind == "global":
        return GlobalDirections(file.global_).to(device)
    if file.mean is None:
        raise ValueError(
            f"{path} was written without the mean directions. Take the global ones, or measure "
            "again without `--no-mean`."
        )
    return MeanDirections(file.mean, file.about.times).to(device)


def _model(
    file: PortableDirections,
    path: Path,
    dm: str | None,
    another_dm: bool,
    device: torch.device | str,
) -> DiffusionModel:
    about = file.about
    try:
        model = load_dm(dm or about.dm, device=device)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The directions in {path} need the diffusion model {about.dm!r} (sha256 "
            f"{about.dm_hash[:12]}…), and there is no {dm or about.dm!r} here. Pass `--dm FILE`."
        ) from error
    if model.unet.h_shape != tuple(file.global_.shape[1:]):
        raise ValueError(
            f"`dm` {model.name} has an h-space of shape {model.unet.h_shape}, the directions in "
            f"{path} one of {tuple(file.global_.shape[1:])}. Pass the model they were found in, "
            f"{about.dm!r}."
        )
    found = dm_hash(model)
    if found != about.dm_hash and not another_dm:
        raise ValueError(
            f"The directions in {path} were found in the diffusion model {about.dm!r} (sha256 "
            f"{about.dm_hash[:12]}…); {model.name} is another one ({found[:12]}…), in which they "
            "mean nothing unless it is a fine-tuned copy. Pass the right one by `--dm FILE`, or "
            "`--another-dm` to try all the same."
        )
    return model


def _scores(run: RunFolder, K: int) -> dict[str, Any]:
    """Return the scores of a run's ranking, else its recalls, else none."""
    try:
        if (run.path / "ranking.json").is_file():
            ranked = run.read_json("ranking.json")["directions"]
            of = {int(entry["k"]): float(entry["score"]) for entry in ranked}
            return {"scores": tuple(of.get(k) for k in range(K)), "score_name": "ranking score"}
        if (run.path / "rca.json").is_file():
            recalls = run.read_json("rca.json")["of_direction"]
            return {"scores": tuple(recalls), "score_name": "RCA recall"}
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The scores in {run.path} (ranking.json or rca.json) cannot be read: {error!r}. "
            "Measure them again."
        ) from error
    return {"scores": (None,) * K, "score_name": ""}
