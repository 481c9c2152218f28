"""Merges answers into the mean opinion score, with how far the raters agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hdiscovery.mos.agreement import krippendorff_alpha, raw_agreement
from hdiscovery.mos.answers import CONDITIONS, Answer, missing
from hdiscovery.mos.study import Study


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far raters of the same direction agree about one thing.

    Attributes:
        raw: Share of equal answers; None where no direction has two.
        alpha: Krippendorff's alpha; None where no two answers differ.
    """

    raw: float | None
    alpha: float | None


@dataclass(frozen=True, slots=True)
class DirectionMarks:
    """What raters say of one direction.

    Attributes:
        k: Index of the direction.
        code: Its code in the study.
        mos: Mean of its marks.
        marks: The mark of each rater, 0 or 1.
        conditions: Share of raters who said yes to each condition.
    """

    k: int
    code: str
    mos: float
    marks: dict[str, int]
    conditions: dict[str, float]


@dataclass(frozen=True, slots=True)
class Score:
    """The outcome of a study.

    Attributes:
        study: Its id.
        run: What the run is called.
        step: Training steps behind the directions.
        mos: Mean of all marks.
        answers: How many marks that is.
        conditions: Share of yes to each condition.
        agreement: Of the marks and of each condition.
        seconds: Mean time spent on a direction.
        directions: Each marked direction, best first.
        missing: Rater and code of each answer that is not there.
    """

    study: str
    run: str
    step: int
    mos: float
    answers: int
    conditions: dict[str, float]
    agreement: dict[str, Agreement]
    seconds: float
    directions: list[DirectionMarks]
    missing: list[tuple[str, str]]


def score(study: Study, answers: Sequence[Answer]) -> Score:
    """Return the MOS: the mean of the marks across all raters and directions.

    Args:
        study: The study.
        answers: Those that are there; directions without any are left out.

    Raises:
        ValueError: If there are none.
    """
    if not answers:
        raise ValueError("`answers` is empty: nobody has marked a direction yet.")
    of_code: dict[str, list[Answer]] = {}
    for answer in answers:
        of_code.setdefault(answer.code, []).append(answer)
    directions = [
        DirectionMarks(
            k=study.codes.index(code),
            code=code,
            mos=_mean([a.mark for a in own]),
            marks={a.rater: a.mark for a in own},
            conditions=_conditions(own),
        )
        for code, own in of_code.items()
    ]
    return Score(
        study=study.id,
        run=study.run,
        step=study.step,
        mos=_mean([a.mark for a in answers]),
        answers=len(answers),
        conditions=_conditions(answers),
        agreement={
            name: _agreement([[getattr(a, name) for a in own] for own in of_code.values()])
            for name in ("mark", *CONDITIONS)
        },
        seconds=_mean([a.seconds for a in answers]),
        directions=sorted(directions, key=lambda d: (-d.mos, d.k)),
        missing=missing(study, answers),
    )


def table(score: Score) -> str:
    """Return a score as a table for the terminal."""
    lines = [f"{'k':>4} {'MOS':>6} {'marks':<10}" + "".join(f"{n:>15}" for n in CONDITIONS)]
    for d in score.directions:
        marks = " ".join(map(str, d.marks.values()))
        shares = "".join(f"{d.conditions[name]:>15.2f}" for name in CONDITIONS)
        lines.append(f"{d.k:>4} {d.mos:>6.2f} {marks:<10}{shares}")
    shares = "".join(f"{score.conditions[name]:>15.2f}" for name in CONDITIONS)
    lines += [f"{'all':>4} {score.mos:>6.2f} {score.answers:<10}{shares}", ""]
    for name, agreement in score.agreement.items():
        raw, alpha = (_shown(value) for value in (agreement.raw, agreement.alpha))
        lines.append(f"agreement of {name:<16} {raw:>5}   Krippendorff's alpha {alpha:>6}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _conditions(answers: Sequence[Answer]) -> dict[str, float]:
    return {name: _mean([getattr(a, name) for a in answers]) for name in CONDITIONS}


def _agreement(units: Sequence[Sequence[bool | int]]) -> Agreement:
    return Agreement(raw_agreement(units), krippendorff_alpha(units))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
