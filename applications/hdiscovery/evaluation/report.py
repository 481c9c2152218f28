"""All measures of a run and of baselines in one report, and the report as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.evaluation.baselines import baseline, learnt_norms, spread_norms
from hdiscovery.evaluation.bench import MEASURES, Bench, LeftOut
from hdiscovery.evaluation.equilibrium import measure_equilibrium
from hdiscovery.evaluation.ranking import MARKS
from hdiscovery.evaluation.settings import PARTS, BaselineName, BaselineStrength, Sizes, Sources
from hdiscovery.progress import Bars, silent

FORMAT = "hdiscovery-evaluation-1"

Report = dict[str, Any]


def evaluate(
    directions: DirectionSet,
    *,
    parts: Iterable[str] = PARTS,
    baselines: Iterable[BaselineName] = (),
    strength: BaselineStrength = "learnt",
    sizes: Sizes | None = None,
    sources: Sources | None = None,
    progress: Bars = silent,
) -> Iterator[Report]:
    """Measure a run and baselines; yield the report after each part.

    Args:
        directions: The run's directions.
        parts: Any of `PARTS`.
        baselines: Any of ``random``, ``pca``, ``jacobian``.
        strength: Strength of the baselines. ``"learnt"`` takes the strength of the run's
            directions. ``"spread"`` takes the spread of h over samples, for a run whose
            directions are still 0.
        sizes: How much is measured.
        sources: Data and nets.
        progress: Makes the progress bar of a part.

    Yields:
        The same report, which grows. ``subjects`` holds the parts of each subject. ``left_out``
        holds the measures that could not be taken, with the reason.

    Raises:
        ValueError: If a part or a size is out of range.
    """
    parts = list(parts)
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(
            f"`only` has unknown parts: {', '.join(sorted(unknown))}. Choose from "
            f"{', '.join(PARTS)}."
        )
    sizes, sources = sizes or Sizes(), sources or Sources()
    learnt, run = replace(directions, name="learnt"), directions.training()
    report: Report = {
        "format": FORMAT,
        "step": run.step,
        "K": learnt.K,
        "S": learnt.S,
        "sizes": asdict(sizes),
        "subjects": {},
        "left_out": {},
    }
    records = run.records()
    if "losses" in parts and records:
        report["losses"] = asdict(measure_equilibrium(records, K=learnt.K))
        yield report
    elif "losses" in parts:
        report["left_out"]["losses"] = "the run has no records"
        yield report
    order = [part for part in MEASURES if part in parts]
    for subject in _subjects(learnt, baselines, strength, sizes) if order else ():
        results = report["subjects"].setdefault(subject.name, {})
        bench = Bench(subject, sizes, sources, progress, subject.R)
        for part in order:
            try:
                results[part] = MEASURES[part](bench)
            except LeftOut as reason:
                report["left_out"][f"{part} of {subject.name}"] = str(reason)
            yield report


def _subjects(
    learnt: DirectionSet,
    names: Iterable[BaselineName],
    strength: BaselineStrength,
    sizes: Sizes,
) -> Iterator[DirectionSet]:
    yield learnt
    names = list(names)
    if names:
        norms = learnt_norms(learnt) if strength == "learnt" else spread_norms(learnt)
        if not any(norms.values()):
            raise ValueError(
                "The baselines have no strength: they take the strength of the learnt directions, "
                "which are still 0 everywhere. Train the run first, or pass "
                "`--baseline-strength spread`."
            )
        for name in names:
            f = baseline(name, learnt, norms=norms, seed=sizes.seed + 2)
            called = name if strength == "learnt" else f"{name}-{strength}"
            yield learnt.with_f(f, name=called)


def merged(before: Report, after: Report) -> Report:
    """Return a report with the parts of an earlier report added.

    A part of both reports is taken from ``after``. If the earlier report is of another checkpoint,
    nothing is taken from it.
    """
    if before.get("format") != FORMAT or before.get("step") != after["step"]:
        return after
    subjects = {name: dict(results) for name, results in before["subjects"].items()}
    for name, results in after["subjects"].items():
        subjects[name] = {**subjects.get(name, {}), **results}
    return {**before, **after, "subjects": subjects}


# Row title, path in a subject's results, number format.
COLUMNS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("RCA", ("rca", "rca"), "{:.3f}"),
    ("  standard error", ("rca", "standard_error"), "{:.3f}"),
    ("RCA |s|>=S/10", ("rca", "rca_large_shifts"), "{:.3f}"),
    ("fresh RCA", ("fresh", "test", "rca"), "{:.3f}"),
    ("  standard error", ("fresh", "test", "standard_error"), "{:.3f}"),
    ("fresh |s|>=S/10", ("fresh", "test", "rca_large_shifts"), "{:.3f}"),
    ("fresh |s_hat-s|", ("fresh", "test", "shift_error"), "{:.2f}"),
    ("FID raw", ("fid", "raw"), "{:.2f}"),
    ("FID shifted", ("fid", "shifted"), "{:.2f}"),
    *((mark, ("marks", "mean", mark), "{:.2f}") for mark in MARKS),
    ("twins", ("marks", "mean", "twins"), "{:.0f}"),
    ("score", ("marks", "mean", "score"), "{:.2f}"),
)


def table(report: Report) -> str:
    """Return the report as text: a row per measure, a column per subject, and the findings."""
    lines = _columns(report) if report["subjects"] else []
    if "losses" in report:
        lines += _losses(report["losses"])
    reasons: dict[str, list[str]] = {}
    for name, why in report["left_out"].items():
        reasons.setdefault(why, []).append(name)
    lines += [f"not measured: {', '.join(names)}: {why}" for why, names in reasons.items()]
    return "\n".join(lines)


def _columns(report: Report) -> list[str]:
    subjects = report["subjects"]
    rows = [["", *subjects]]
    for name, path, form in COLUMNS:
        values = [_at(results, path) for results in subjects.values()]
        if any(value is not None for value in values):
            rows.append([name, *("-" if v is None else form.format(v) for v in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = (cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))
        lines.append("  ".join((first.ljust(widths[0]), *cells)))
    chance = f"chance of RCA: {1 / report['K']:.3f}"
    return [*lines, f"{chance};  |s_hat-s| of a constant 0: {report['S'] / 2:g}"]


def _losses(losses: Mapping[str, Any]) -> list[str]:
    means = (
        f"L_G {losses['L_G']:.3f} (ln 2 = 0.693), L_D {losses['L_D']:.3f} (2 ln 2 = 1.386), "
        f"over the last {losses['window']} of {losses['steps']} steps"
    )
    found = [f"! {f['name']} since step {f['step']}: {f['text']}" for f in losses["findings"]]
    return [means, *(found or ["the losses show nothing wrong"])]


def _at(results: Any, path: Sequence[str]) -> float | None:
    for name in path:
        if not isinstance(results, Mapping) or name not in results:
            return None
        results = results[name]
    return results
