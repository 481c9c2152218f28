"""What a run's folder says about its directions: labels, scores, calibrated strengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from hdiscovery.directions.about import About
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.fingerprint import dm_hash, weights_hash
from hdiscovery.directions.labels import read_labels
from hdiscovery.directions.portable import FILE, load_directions
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.model import DiffusionModel


def about_run(
    config: DiscoveryConfig,
    dm: DiffusionModel,
    shift_block: nn.Module,
    times: Sequence[int],
    folder: RunFolder | None,
) -> About:
    """Return what is known of a run's directions.

    Labels come from ``labels.json``, and otherwise from the run's file of means. Scores come from
    the ranking, and otherwise are the recalls of the reconstructor. Calibrated strengths come from
    the file of means, if it was measured from the shift block as it is now.

    Args:
        config: How the run was made.
        dm: Its diffusion model.
        shift_block: Its shift block.
        times: The times at which it shifts samples.
        folder: The run's folder. Without a folder, only hashes and settings are known.

    Raises:
        ValueError: If one of these files is damaged.
    """
    K = config.shift.K
    about = About(
        dm=config.model.dm,
        dm_hash=dm_hash(dm),
        shift_block_hash=weights_hash(shift_block),
        K=K,
        S=config.shift.S,
        M=config.sampling.M,
        t_stop=config.shift.t_stop,
        grid=config.sampling.grid,
        update=config.shift.update,
        times=tuple(times),
        labels=("",) * K,
        scores=(None,) * K,
    )
    return about if folder is None else _with_files(about, folder)


def _with_files(about: About, folder: RunFolder) -> About:
    about = replace(about, **_scores(folder, about.K))
    if (folder.path / FILE).is_file():
        measured = load_directions(folder.path / FILE, with_mean=False).about
        if measured.K == about.K:
            about = replace(about, labels=measured.labels)
        if measured.shift_block_hash == about.shift_block_hash:
            about = replace(about, calibration=measured.calibration)
    named = read_labels(folder, K=about.K)
    return replace(about, labels=tuple(named.get(k, text) for k, text in enumerate(about.labels)))


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
    return {}
