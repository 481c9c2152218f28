"""Reads what a run folder knows about its directions, and draws them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdiscovery.directions.labels import read_labels
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.evaluation.equilibrium import findings
from hdiscovery.pages.draw import Progress, draw_strips, even_shifts
from hdiscovery.pages.shown import ShownDirection, ShownRun

if TYPE_CHECKING:
    from hdiscovery.directions.direction_set import DirectionSet

FACTS = ("K", "S", "M", "t_stop", "batch_size")
MEASURES = ("monotonicity", "smoothness", "consistency", "fidelity", "effect")


def shown_run(
    directions: DirectionSet,
    accuracy: Mapping[str, Any],
    *,
    only: Collection[int] | None = None,
    samples: int = 6,
    columns: int = 9,
    seed: int = 7,
    progress: Progress = iter,
) -> ShownRun:
    """Draw a run's directions, and add what is written about them in its folder.

    Args:
        directions: A run's directions; ``ranking.json`` and ``labels.json`` are read from its
            folder if they are there.
        accuracy: The run's measured accuracy, as in ``rca.json``.
        only: Directions to draw; by default all.
        samples: Samples of each direction, the same ones for all.
        columns: Shifts of each sample, odd.
        seed: Of the samples.
        progress: Wraps the loop over directions, as ``tqdm`` does.

    Raises:
        ValueError: If a file is not what it should be, or an argument is out of range.
    """
    training = directions.training()
    run, K = training.in_folder(), directions.K
    shifts = even_shifts(directions.S, columns)
    labels = read_labels(run, K=K)
    ranking, ranked_at = _ranking(run)
    records = list(run.records())
    chosen = _chosen(only, K=K)
    shown = [
        ShownDirection.of(
            k,
            draw_strips(directions, k, samples=samples, shifts=shifts, seed=seed),
            label=labels.get(k, ""),
            **{"accuracy": accuracy["of_direction"][k], **_among(chosen, ranking.get(k, {}))},
        )
        for k in progress(chosen)
    ]
    return ShownRun(
        name=directions.name,
        dm=Path(training.config.model.dm).name,
        K=K,
        S=directions.S,
        shifts=shifts,
        directions=shown,
        records=records,
        facts=_facts(training.config.leaves(), training.step, accuracy, records),
        alarms=[*_stale(ranked_at, training.step), *_alarms(records, K=K)],
    )


def _chosen(only: Collection[int] | None, *, K: int) -> Sequence[int]:
    chosen = range(K) if only is None else sorted(set(only))
    if unknown := [k for k in chosen if not 0 <= k < K]:
        raise ValueError(
            f"`only` names direction {unknown[0]}, and the run has 0 … {K - 1}. Choose among those."
        )
    return chosen


def _among(chosen: Collection[int], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a direction, without a twin that is not shown."""
    twin = known.get("twin_of")
    return {**known, "twin_of": twin if twin and twin[0] in chosen else None}


def _ranking(run: RunFolder) -> tuple[dict[int, dict[str, Any]], int | None]:
    """Return what was ranked, by direction, and the step it was ranked at."""
    if not (run.path / "ranking.json").exists():
        return {}, None
    ranking = _json(run, "ranking.json")
    try:
        directions = {
            d["k"]: {
                "score": d["score"],
                "accuracy": d["accuracy"],
                "measures": {name: d[name] for name in MEASURES if name in d},
                "twin_of": tuple(d["twin_of"]) if d.get("twin_of") else None,
            }
            for d in ranking["directions"]
        }
        return directions, ranking["step"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{run.path / 'ranking.json'} is not a ranking of this version: {error!r}. Rank the "
            "run again, or move the file away."
        ) from error


def _stale(ranked_at: int | None, step: int) -> list[str]:
    if ranked_at in (None, step):
        return []
    return [f"The directions were ranked at step {ranked_at}; those shown are of step {step}."]


def _alarms(records: Sequence[Mapping[str, Any]], *, K: int) -> list[str]:
    return [f"{found.name}: {found.text}" for found in findings(records, K=K)] if records else []


def _json(run: RunFolder, name: str) -> Any:
    try:
        return run.read_json(name)
    except ValueError as error:
        raise ValueError(f"{run.path / name} is not JSON: {error}.") from error


def _facts(
    config: Mapping[str, Any],
    step: int,
    accuracy: Mapping[str, Any],
    records: Sequence[Mapping[str, float]],
) -> dict[str, str | float]:
    last = records[-10:]
    return {
        "RCA": f"{accuracy['rca']:.2f} (chance {1 / config['K']:.2g})",
        "shift error": f"{accuracy['shift_error']:.2f} (S/2 = {config['S'] / 2:g})",
        "L_G": f"{sum(r['L_G'] for r in last) / len(last):.3f} (ln 2 = 0.693)" if last else "—",
        "steps": step,
        **{name: config[name] for name in FACTS},
    }
