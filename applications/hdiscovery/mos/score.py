"""Merge answers into the mean opinion score (MOS), and measure the raters' agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hdiscovery.mos.agreement import krippendorff_alpha, raw_agreement
from hdiscovery.mos.answers import CONDITIONS, Answer, missing
from hdiscovery.mos.study import Study


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of raters of the same direction about one question.

    Attributes:
        raw: Share of equal answers; None if no direction has two answers.
        alpha: Krippendorff's alpha; None if all answers are equal.
    """

    raw: float | None
    alpha: float | None


@dataclass(frozen=True, slots=True)
class DirectionMarks:
    """The marks of one direction.

    Attributes:
        k: Index of the direction.
        code: Code of the direction in the study.
        mos: Mean of the marks.
        marks: The mark of each rater, 0 or 1.
        conditions: Share of raters who answered yes, for each condition.
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
        study: Id of the study.
        run: Name of the run.
        step: Training steps behind the directions.
        mos: Mean of all marks.
        answers: Number of marks.
        conditions: Share of yes answers, for each condition.
        agreement: Agreement about the mark and about each condition.
        seconds: Mean time spent on a direction.
        directions: The marked directions, best first.
        missing: Rater and code of each missing answer.
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
    """Return the MOS, the mean of the marks over all raters and directions, with its details.

    Args:
        study: The study.
        answers: The answers so far. Directions without answers are left out.

    Raises:
        ValueError: If ``answers`` is empty.
    """
    if not answers:
        raise ValueError("`answers` is empty: nobody has marked a direction yet.")
    of_code: dict[str, list[Answer]] = {}
    for answer in answers:
        of_code.setdefault(answer.code, []).append(answer)
    directions = [_marks(study, code, own) for code, own in of_code.items()]
    agreement = {
        name: _agreement([[getattr(a, name) for a in own] for own in of_code.values()])
        for name in ("mark", *CONDITIONS)
    }
    return Score(
        study.id, study.run, study.step, mos=_mean([a.mark for a in answers]),
        answers=len(answers), conditions=_conditions(answers), agreement=agreement,
        seconds=_mean([a.seconds for a in answers]), missing=missing(study, answers),
        directions=sorted(directions, key=lambda d: (-d.mos, d.k)),
    )  # fmt: skip


def _marks(study: Study, code: str, answers: Sequence[Answer]) -> DirectionMarks:
    return DirectionMarks(
        k=study.codes.index(code), code=code, mos=_mean([a.mark for a in answers]),
        marks={a.rater: a.mark for a in answers}, conditions=_conditions(answers),
    )  # fmt: skip


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
        lines.append(f"agreement on {name:<16} {raw:>5}   Krippendorff's alpha {alpha:>6}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _conditions(answers: Sequence[Answer]) -> dict[str, float]:
    return {name: _mean([getattr(a, name) for a in answers]) for name in CONDITIONS}


def _agreement(units: Sequence[Sequence[bool | int]]) -> Agreement:
    return Agreement(raw_agreement(units), krippendorff_alpha(units))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
