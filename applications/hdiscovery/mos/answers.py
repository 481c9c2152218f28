"""Read the answer files that raters saved; refuse files that do not fit the study."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdiscovery.mos.study import Study

FORMAT = "hdiscovery-mos-answers-1"
CONDITIONS = ("smooth", "consistent", "interpretable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A rater's answers about one direction.

    Attributes:
        rater: The rater's code.
        code: The direction's code.
        smooth: Whether each example changes smoothly from -S to S.
        consistent: Whether the change is the same in all examples.
        interpretable: Whether the change is easy to interpret.
        seconds: Time for which the rater saw the direction.
    """

    rater: str
    code: str
    smooth: bool
    consistent: bool
    interpretable: bool
    seconds: float

    @property
    def mark(self) -> int:
        """The paper's mark: 1 if all three conditions hold, else 0."""
        return int(self.smooth and self.consistent and self.interpretable)


def read_answers(study: Study, paths: Iterable[Path]) -> list[Answer]:
    """Return the answers in several raters' files.

    Args:
        study: The study.
        paths: One file for each rater.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file does not hold answers, belongs to another study, or names an unknown
            rater; if two files are of one rater; or if a direction was not assigned to the rater
            or is answered twice.
    """
    answers: list[Answer] = []
    seen: dict[str, Path] = {}
    for path in paths:
        own = _read(study, path)
        rater = own[0].rater if own else None
        if rater is not None:
            if rater in seen:
                raise ValueError(
                    f"{path} and {seen[rater]} are both of rater {rater}. Keep the later file."
                )
            seen[rater] = path
        answers += own
    return answers


def missing(study: Study, answers: Iterable[Answer]) -> list[tuple[str, str]]:
    """Return rater and code of every missing answer."""
    there = {(answer.rater, answer.code) for answer in answers}
    wanted = [(rater, code) for rater, own in study.raters.items() for code in own]
    return [pair for pair in wanted if pair not in there]


def _read(study: Study, path: Path) -> list[Answer]:
    if not path.is_file():
        raise FileNotFoundError(f"The answer file {path} does not exist.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
        study_id, rater = content["study"], content["rater"]
        entries = [_entry(entry) for entry in content["answers"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not an answer file: {error!r}.") from error
    _refuse_foreign(study, path, study_id, rater, [entry["direction"] for entry in entries])
    return [_answer(rater, entry) for entry in entries]


def _refuse_foreign(study: Study, path: Path, study_id: str, rater: str, codes: list[str]) -> None:
    if study_id != study.id:
        raise ValueError(f"{path} is of study {study_id!r}, not of {study.id!r}.")
    if rater not in study.raters:
        raise ValueError(
            f"{path} is of rater {rater!r}, who is not in the study. Its raters are "
            f"{', '.join(study.raters)}."
        )
    for code in codes:
        if code not in study.raters[rater]:
            raise ValueError(f"{path}: direction {code!r} was not assigned to rater {rater}.")
        if codes.count(code) > 1:
            raise ValueError(f"{path}: direction {code!r} is answered {codes.count(code)} times.")


def _answer(rater: str, entry: dict[str, Any]) -> Answer:
    conditions = {name: entry[name] for name in CONDITIONS}
    return Answer(
        rater=rater, code=entry["direction"], seconds=float(entry["seconds"]), **conditions
    )


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(entry["direction"], str):
        raise ValueError(f"`direction` is {entry['direction']!r}, not a code")
    for name in CONDITIONS:
        if not isinstance(entry[name], bool):
            raise ValueError(
                f"`{name}` of {entry['direction']!r} is {entry[name]!r}, not a yes or no"
            )
    if not isinstance(entry["seconds"], (int, float)):
        raise ValueError(f"`seconds` of {entry['direction']!r} is {entry['seconds']!r}")
    return entry
