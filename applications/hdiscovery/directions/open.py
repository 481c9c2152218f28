"""Opens directions: a run, a published run and a portable file, all the same way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from hdiscovery.directions.about import About
from hdiscovery.directions.direction_set import DirectionSet, Kind
from hdiscovery.directions.fingerprint import dm_hash
from hdiscovery.directions.fixed import GlobalDirections, MeanDirections
from hdiscovery.directions.portable import FILE, PortableDirections, load_directions
from hdiscovery.directions.run_about import about_run
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.run_networks import RunNetworks, sampler_of
from hdiscovery.directions.sampler import Sampler
from hdiscovery.directions.saved import open_networks
from hdiscovery.directions.shipped import located, shipped_runs
from hdiscovery.directions.step import ShiftFunction
from hdiscovery.directions.trained_run import TrainedRun
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.open import load_dm


def open_directions(
    path: str | Path,
    kind: Kind | None = None,
    *,
    dm: str | None = None,
    another_dm: bool = False,
    device: torch.device | str = "cpu",
) -> DirectionSet:
    """Open directions.

    Args:
        path: A run's folder, the name of a run that comes with the package, or a file as
            `save_directions` writes it.
        kind: ``"direct"``, ``"mean"`` or ``"global"``. By default the shift block of a run, the
            mean directions of a file, and its global ones if it has no mean.
        dm: For a file: the diffusion model to take instead of the one that the file names.
        another_dm: For a file: whether its directions may act in a diffusion model that they were
            not found in.
        device: Where the networks go.

    Raises:
        FileNotFoundError: If there is nothing at ``path``, or a run has no file of means yet.
        ValueError: If ``kind`` is not there, the diffusion model is not the right one, or a file is
            damaged.
    """
    where = located(Path(path))
    if not where.exists():
        raise FileNotFoundError(
            f"There are no directions at {str(path)!r}. Expected the folder of a run, a file that "
            "`hdiscovery publish RUN --to file` wrote, or one of the runs that come with the "
            f"package: {', '.join(shipped_runs()) or 'none'}."
        )
    if where.is_file():
        return _open_file(where, kind, dm, another_dm, device)
    if dm is not None or another_dm:
        raise ValueError(
            f"The run {where} has its diffusion model; `--dm` and `--another-dm` go with a file of "
            f"directions, such as {where / FILE}."
        )
    return _open_run(where, kind, device)


def directions_of(
    networks: RunNetworks, *, name: str = "learnt", folder: RunFolder | None = None, step: int = 0
) -> DirectionSet:
    """Return the directions of a run's shift block.

    Args:
        networks: The run's networks.
        name: What reports call the directions.
        folder: The run's folder, if it has one.
        step: Training steps behind the networks.
    """
    config, dm, f = networks.config, networks.dm, networks.shift_block
    sampler = sampler_of(config)

    def known() -> About:
        return about_run(config, dm, f, sampler.times(dm), folder)

    return DirectionSet(
        name=name, kind="direct", dm=dm, f=f, K=config.shift.K, S=config.shift.S,
        sampler=sampler, known=known, R=networks.R, run=TrainedRun(config, step, folder),
    )  # fmt: skip


def check_measured_from(directions: DirectionSet, about: About, path: Path) -> None:
    """Refuse means that were not measured from a run's shift block as it is now.

    Raises:
        ValueError: If they were not.
    """
    if about.shift_block_hash != directions.about.shift_block_hash:
        raise ValueError(
            f"{path} was measured from another state of the shift block: the run has been trained "
            "since, or the file is another run's. Measure again by `hdiscovery publish RUN --to "
            "file --overwrite`."
        )


def _open_run(path: Path, kind: Kind | None, device: torch.device | str) -> DirectionSet:
    folder = RunFolder.open(path)
    networks, step = open_networks(folder, device=device)
    networks.shift_block.eval().requires_grad_(False)
    direct = directions_of(networks, name=path.resolve().name, folder=folder, step=step)
    if kind in (None, "direct"):
        return direct
    file = load_directions(path / FILE)
    check_measured_from(direct, file.about, path / FILE)
    means = _of_file(file, path / FILE, kind, direct.dm)
    return replace(means, name=direct.name, run=direct.run)


def _open_file(
    path: Path, kind: Kind | None, dm: str | None, another_dm: bool, device: torch.device | str
) -> DirectionSet:
    file = load_directions(path, with_mean=kind != "global")
    if kind == "direct":
        raise ValueError(
            f"{path} holds means only; for the direct directions pass the run's folder, which has "
            "the shift block."
        )
    model = _load_model(file.about, path, dm, device)
    check_model(model, file, path, another_dm=another_dm)
    return _of_file(file, path, kind, model)


def _of_file(
    file: PortableDirections, path: Path, kind: Kind | None, dm: DiffusionModel
) -> DirectionSet:
    about = file.about
    kind = kind or ("global" if file.mean is None else "mean")
    sampler = Sampler(M=about.M, t_stop=about.t_stop, convention=about.grid, update=about.update)
    return DirectionSet(
        name=path.stem, kind=kind, dm=dm, f=_fixed(file, kind, path, dm.device), K=about.K,
        S=about.S, sampler=sampler, known=lambda: about,
    )  # fmt: skip


def _fixed(file: PortableDirections, kind: Kind, path: Path, device: torch.device) -> ShiftFunction:
    if kind == "global":
        return GlobalDirections(file.global_).to(device)
    if file.mean is None:
        raise ValueError(
            f"{path} was written without the mean directions. Take the global ones, or measure "
            "again without `--no-mean`."
        )
    return MeanDirections(file.mean, file.about.times).to(device)


def _load_model(
    about: About, path: Path, dm: str | None, device: torch.device | str
) -> DiffusionModel:
    try:
        return load_dm(dm or about.dm, device=device)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The directions in {path} need the diffusion model {about.dm!r} (sha256 "
            f"{about.dm_hash[:12]}…), and there is no {dm or about.dm!r} here. Pass `--dm FILE`."
        ) from error


def check_model(
    model: DiffusionModel, file: PortableDirections, path: Path, *, another_dm: bool = False
) -> None:
    """Refuse a diffusion model that a file's directions were not found in.

    Args:
        model: The diffusion model.
        file: The content of the file.
        path: The file, for the error.
        another_dm: Whether another model with the same h-space may be taken.

    Raises:
        ValueError: If it is another model.
    """
    about, shape = file.about, tuple(file.global_.shape[1:])
    if model.unet.h_shape != shape:
        raise ValueError(
            f"`dm` {model.name} has an h-space of shape {model.unet.h_shape}, the directions in "
            f"{path} one of {shape}. Pass the model they were found in, {about.dm!r}."
        )
    found = dm_hash(model)
    if found != about.dm_hash and not another_dm:
        raise ValueError(
            f"The directions in {path} were found in the diffusion model {about.dm!r} (sha256 "
            f"{about.dm_hash[:12]}…), and {model.name} is another one ({found[:12]}…). "
            "Directions mean nothing in another model, unless it is a fine-tuned copy. Pass the "
            "right model by `--dm FILE`, or try all the same with `--another-dm`."
        )
