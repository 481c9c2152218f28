"""The checkpoint of another run that a run begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hdiscovery.directions.config import MADE_BY, DiscoveryConfig, run_config
from hdiscovery.directions.fingerprint import dm_hash
from hdiscovery.directions.history import known_model
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import is_published, open_networks
from hdiscovery.directions.shipped import located
from hdiscovery.dm.model import DiffusionModel


def start_of(config: DiscoveryConfig, dm: DiffusionModel) -> dict[str, Any]:
    """Return the last checkpoint of the run ``config.run.start_from``.

    Of a published run, what it has of a checkpoint: ``optimizers`` is None then. ``R`` is None if
    that run's reconstructor is of another kind than ``config.networks.reconstructor``.

    Args:
        config: Of the run that begins.
        dm: Its diffusion model.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If it has no checkpoint yet, or its networks are of another kind.
    """
    run = RunFolder.open(located(Path(config.run.start_from)))
    theirs = run_config(run)
    _refuse_unlike(run, theirs, config, dm)
    checkpoint = _published(run) if is_published(run) else run.load_checkpoint()
    if checkpoint is None:
        raise ValueError(f"`start_from` {config.run.start_from} has no checkpoint yet.")
    if theirs.networks.reconstructor != config.networks.reconstructor:
        checkpoint["R"] = None
    return checkpoint


def _refuse_unlike(
    run: RunFolder, theirs: DiscoveryConfig, config: DiscoveryConfig, dm: DiffusionModel
) -> None:
    """Check that the networks of a run fit; of its diffusion model by the hash, if it has one."""
    mine, other, known = config.leaves(), theirs.leaves(), known_model(run)
    if known is not None and dm_hash(dm) == known.sha256:
        other["dm"] = mine["dm"]
    for name in MADE_BY:
        if other[name] != mine[name]:
            raise ValueError(
                f"`start_from` {config.run.start_from} is a run with `{name}` {other[name]!r}, and "
                f"this one has {mine[name]!r}. Networks fit runs with the same "
                f"{', '.join(MADE_BY)}."
            )
    if known is not None and dm_hash(dm) != known.sha256:
        raise ValueError(
            f"`start_from` {config.run.start_from} was trained with another diffusion model: its "
            f"sha256 begins with {known.sha256[:12]}, that of {mine['dm']} with "
            f"{dm_hash(dm)[:12]}. Pass the run's model by `--dm`."
        )


def _published(run: RunFolder) -> dict[str, Any]:
    networks, _ = open_networks(run)
    return {"shift_block": networks.shift_block.state_dict(), "average": None,
            "R": networks.R.state_dict(), "optimizers": None}  # fmt: skip
