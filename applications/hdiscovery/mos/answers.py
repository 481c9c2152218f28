"""Reads the files of answers that raters saved, and refuses what does not fit the study."""

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
    """What a rater says of a direction.

    Attributes:
        rater: Who.
        code: The direction's code.
        smooth: All images of each example transit smoothly from -S to S.
        consistent: The transition is the same in all examples.
        interpretable: It is easy to interpret.
        seconds: How long the direction was looked at.
    """

    rater: str
    code: str
    smooth: bool
    consistent: bool
    interpretable: bool
    seconds: float

    @property
    def mark(self) -> int:
        """The paper's mark: 1 only where all three conditions hold."""
        return int(self.smooth and self.consistent and self.interpretable)


def read_answers(study: Study, paths: Iterable[Path]) -> list[Answer]:
    """Return the answers of several raters' files.

    Args:
        study: The study they belong to.
        paths: A file a rater.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file is no file of answers or of another study, its rater is unknown or
            comes twice, or a direction is not the rater's or answered twice.
    """
    answers: list[Answer] = []
    seen: dict[str, Path] = {}
    for path in paths:
        own = _read(study, path)
        rater = own[0].rater if own else None
        if rater is not None:
            if rater in seen:
                raise ValueError(
                    f"{path} and {seen[rater]} are both of rater {rater}. Keep the later one."
                )
            seen[rater] = path
        answers += own
    return answers


def missing(study: Study, answers: Iterable[Answer]) -> list[tuple[str, str]]:
    """Return rater and code of every answer that is not there."""
    there = {(answer.rater, answer.code) for answer in answers}
    wanted = [(rater, code) for rater, own in study.raters.items() for code in own]
    return [pair for pair in wanted if pair not in there]


def _read(study: Study, path: Path) -> list[Answer]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of answers {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
        study_id, rater = content["study"], content["rater"]
        entries = [_entry(entry) for entry in content["answers"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of answers: {error!r}.") from error
    if study_id != study.id:
        raise ValueError(f"{path} is of study {study_id!r}, not of {study.id!r}.")
    if rater not in study.raters:
        raise ValueError(f"{path} is of rater {rater!r}; the study has {', '.join(study.raters)}.")
    codes = [entry["direction"] for entry in entries]
    for code in codes:
        if code not in study.raters[rater]:
            raise ValueError(f"{path}: direction {code!r} was not given to rater {rater}.")
        if codes.count(code) > 1:
            raise ValueError(f"{path}: direction {code!r} is answered {codes.count(code)} times.")
    return [
        Answer(
            rater=rater,
            code=entry["direction"],
            seconds=float(entry["seconds"]),
            **{name: entry[name] for name in CONDITIONS},
        )
        for entry in entries
    ]


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
