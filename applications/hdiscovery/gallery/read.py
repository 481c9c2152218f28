"""Reads what a run folder knows about its directions, and draws them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdiscovery.gallery.draw import Progress, draw_strips, even_shifts
from hdiscovery.gallery.shown import ShownDirection, ShownRun
from hdiscovery.run import RunFolder

if TYPE_CHECKING:
    from hdiscovery.discovery import Discovery

FACTS = ("K", "S", "M", "t_stop", "batch_size")
MEASURES = ("monotonicity", "smoothness", "consistency", "fidelity", "effect")


def shown_run(
    run: RunFolder,
    discovery: Discovery,
    accuracy: Mapping[str, Any],
    *,
    samples: int = 6,
    columns: int = 9,
    seed: int = 7,
    progress: Progress = iter,
) -> ShownRun:
    """Draw a run's directions, and add what is written about them in its folder.

    Args:
        run: The folder; ``ranking.json``, ``labels.json`` and the alarms of ``evaluation.json``
            are read where they are there.
        discovery: The run's networks.
        accuracy: The run's measured accuracy, as in ``rca.json``.
        samples: Samples of each direction, the same ones for all.
        columns: Shifts of each sample, odd.
        seed: Of the samples.
        progress: Wraps the loop over directions, as ``tqdm`` does.

    Raises:
        ValueError: If a file is not what it should be, or an argument is out of range.
    """
    config = discovery.config
    shifts = even_shifts(config.S, columns)
    ranking, labels = _ranking(run), read_labels(run, K=config.K)
    records = list(run.records())
    directions = [
        ShownDirection.of(
            k,
            draw_strips(discovery, k, samples=samples, shifts=shifts, seed=seed),
            label=labels.get(k, ""),
            **{"accuracy": accuracy["of_direction"][k], **ranking.get(k, {})},
        )
        for k in progress(range(config.K))
    ]
    return ShownRun(
        name=run.path.resolve().name,
        dm=Path(config.dm).name,
        K=config.K,
        S=config.S,
        shifts=shifts,
        directions=directions,
        records=records,
        facts=_facts(asdict(config), accuracy, records),
        alarms=[*_stale(run), *_alarms(run)],
    )


def read_labels(run: RunFolder, *, K: int) -> dict[int, str]:
    """Return the labels of ``labels.json`` by direction; none where there is no such file.

    Raises:
        ValueError: If the file is not what the page saves.
    """
    path = run.path / "labels.json"
    if not path.exists():
        return {}
    labels = _json(run, "labels.json")
    if not isinstance(labels, dict) or not all(isinstance(text, str) for text in labels.values()):
        raise ValueError(f'{path} must map directions to words, as {{"3": "thickness"}} does.')
    known = {str(k): k for k in range(K)}
    if unknown := [k for k in labels if k not in known]:
        raise ValueError(
            f"{path} names {unknown[0]!r}, which is none of the run's directions 0 … {K - 1}. "
            "Is it another run's file?"
        )
    return {known[k]: text for k, text in labels.items()}


def _ranking(run: RunFolder) -> dict[int, dict[str, Any]]:
    if not (run.path / "ranking.json").exists():
        return {}
    ranking = _json(run, "ranking.json")
    try:
        return {
            d["k"]: {
                "score": d["score"],
                "accuracy": d["accuracy"],
                "measures": {name: d[name] for name in MEASURES if name in d},
                "twin_of": tuple(d["twin_of"]) if d.get("twin_of") else None,
            }
            for d in ranking["directions"]
        }
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{run.path / 'ranking.json'} is not a ranking of this version: {error!r}. Rank the "
            "run again, or move the file away."
        ) from error


def _stale(run: RunFolder) -> list[str]:
    ranking, checkpoint = (run.path / name for name in ("ranking.json", "checkpoint.pt"))
    if not (ranking.exists() and checkpoint.exists()):
        return []
    if ranking.stat().st_mtime >= checkpoint.stat().st_mtime:
        return []
    return ["The run was trained on after it was ranked: the scores are those of older directions."]


def _alarms(run: RunFolder) -> list[str]:
    if not (run.path / "evaluation.json").exists():
        return []
    evaluation = _json(run, "evaluation.json")
    alarms = evaluation.get("alarms", []) if isinstance(evaluation, dict) else []
    return [alarm if isinstance(alarm, str) else json.dumps(alarm) for alarm in alarms]


def _json(run: RunFolder, name: str) -> Any:
    try:
        return run.read_json(name)
    except ValueError as error:
        raise ValueError(f"{run.path / name} is not JSON: {error}.") from error


def _facts(
    config: Mapping[str, Any],
    accuracy: Mapping[str, Any],
    records: Sequence[Mapping[str, float]],
) -> dict[str, str | float]:
    last = records[-10:]
    return {
        "RCA": f"{accuracy['rca']:.2f} (chance {1 / config['K']:.2g})",
        "shift error": f"{accuracy['shift_error']:.2f} (S/2 = {config['S'] / 2:g})",
        "L_G": f"{sum(r['L_G'] for r in last) / len(last):.3f} (ln 2 = 0.693)" if last else "—",
        "steps": len(records),
        **{name: config[name] for name in FACTS},
    }
