"""The history of a run: when it was begun, resumed and changed, and with which diffusion model."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import chainograd
from hdiscovery.directions.config import DiscoveryConfig, run_config
from hdiscovery.directions.fingerprint import dm_hash
from hdiscovery.directions.groups import GROUP_OF
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.open import load_dm, shipped_models

# Note [History]
# ``history.jsonl`` has a line for each event: a start, a resumption, a change of the config. Lines
# are appended, never changed; what a line that a kill cut short would have said is in the next one.
# The last line that names a diffusion model holds.

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnownModel:
    """The diffusion model that a run was trained with.

    Attributes:
        dm: How the run's config calls it.
        path: Absolute path of its file or folder; empty in a published run.
        sha256: Hash of its weights and betas.
    """

    dm: str
    path: str
    sha256: str

    @classmethod
    def of(cls, config: DiscoveryConfig, dm: DiffusionModel) -> KnownModel:
        """Return what is to be known of a run's model."""
        path = shipped_models().get(config.model.dm, Path(config.model.dm))
        return cls(config.model.dm, str(path.resolve()), dm_hash(dm))


def known_model(run: RunFolder) -> KnownModel | None:
    """Return the model that a run's history names last, None if it names none."""
    named = [entry["model"] for entry in run.history() if "model" in entry]
    return KnownModel(**named[-1]) if named else None


def open_model(
    run: RunFolder, config: DiscoveryConfig, *, device: torch.device | str = "cpu"
) -> DiffusionModel:
    """Load a run's diffusion model, and check that it is the one that the run was trained with.

    A model that is given by a relative path is found from every working directory. Runs of earlier
    versions stored no hash: their model is not checked, and a log message says so.

    Args:
        run: The run.
        config: Its config; another ``dm`` than the run's is accepted if it is the same model.
        device: Where the weights go.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If it is another model.
    """
    known, source = known_model(run), config.model.dm
    if known is None:
        if next(run.records(), None) is not None:  # it was trained, by an earlier version
            _log.warning("%s stores no hash of its diffusion model: %s is not checked.",
                         run.path, source)  # fmt: skip
        return load_dm(source, device=device)
    if (
        source == known.dm
        and source not in shipped_models()
        and Path(known.path or source).exists()
    ):
        source = known.path or source
    dm = load_dm(source, device=device)
    if dm_hash(dm) != known.sha256:
        raise ValueError(
            f"The diffusion model {source} is not the one that {run.path} was trained with: its "
            f"sha256 is {dm_hash(dm)[:12]}…, the run's is {known.sha256[:12]}…. Likely the file "
            "was replaced, or another file has its name here. Put the run's model back"
            f"{f' at {known.path}' if known.path else ''}; if it is elsewhere, name it in "
            f"{run.path / 'config.json'} as `dm`."
        )
    return dm


def enter_start(
    run: RunFolder, config: DiscoveryConfig, model: KnownModel, *, step: int, processes: int
) -> None:
    """Append to a run's history that a training starts at a step; keep its config if that changed.

    Args:
        run: The run.
        config: The config from here on.
        model: The diffusion model that it trains with.
        step: The first step.
        processes: How many train together.
    """
    begins = not any("config" in entry for entry in run.history())
    before = None if begins else run_config(run)
    enter(run, "begun" if step == 0 and begins else "resumed", config=config, before=before,
          step=step, processes=processes, model=asdict(model))  # fmt: skip


def enter_published(run: RunFolder, config: DiscoveryConfig, dm: DiffusionModel, step: int) -> None:
    """Begin the history of a published run: its diffusion model, without this machine's path.

    Args:
        run: The published run.
        config: Its config.
        dm: The diffusion model that it was trained with.
        step: How many steps it was trained.
    """
    model = replace(KnownModel.of(config, dm), path="")
    run.append_history({**stamp("published"), "step": step, "model": asdict(model)})


def enter(
    run: RunFolder,
    event: str,
    *,
    config: DiscoveryConfig,
    before: DiscoveryConfig | None = None,
    **facts: Any,
) -> None:
    """Append an event to a run's history, then write the run's config if it changed.

    Args:
        run: The run.
        event: Such as ``"resumed"``.
        config: The run's config from here on.
        before: The run's config until here; None enters the whole config.
        facts: What else is known of the event.
    """
    said = {"config": asdict(config)} if before is None else _changed(before, config)
    run.append_history({**stamp(event), **facts, **said})
    if run_config(run) != config:
        run.write_json("config.json", asdict(config))


def stamp(event: str) -> dict[str, Any]:
    """Return an event with its time and the versions that it happened under."""
    versions = {"chainograd": chainograd.__version__, "torch": torch.__version__,
                "python": platform.python_version()}  # fmt: skip
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"event": event, "when": now, "versions": versions}


def _changed(before: DiscoveryConfig, after: DiscoveryConfig) -> Mapping[str, Any]:
    old, new = before.leaves(), after.leaves()
    changed = {f"{GROUP_OF[name]}.{name}": [old[name], new[name]]
               for name in old if old[name] != new[name]}  # fmt: skip
    return {"changed": changed} if changed else {}
