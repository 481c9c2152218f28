"""A study: directions under codes, and the directions that each rater marks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = "hdiscovery-mos-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study, as in its ``study.json``. Raters must not see it, because it reveals the codes.

    Attributes:
        id: Id of the study, in every page and in every answer file.
        run: Name of the run.
        step: Training steps behind the directions.
        S: Largest shift.
        examples: Samples of each direction.
        strengths: Number of shifts of each sample, from -S to S.
        seed: Seed of samples, codes and assignment.
        codes: The code of each direction, in the order of k.
        raters: The codes that each rater marks, in the order of the rater's page.
    """

    id: str
    run: str
    step: int
    S: float
    examples: int
    strengths: int
    seed: int
    codes: list[str]
    raters: dict[str, list[str]]

    def to_json(self) -> str:
        """Return the content of ``study.json``."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def open(cls, folder: Path) -> Study:
        """Return the study of a folder.

        Raises:
            FileNotFoundError: If the folder holds no study.
            ValueError: If the study is damaged or of another version.
        """
        path = folder / "study.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} is not a study: it holds no study.json. `hdiscovery mos make` makes one."
            )
        try:
            entries: dict[str, Any] = json.loads(path.read_text())
            if entries.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            return cls(**entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a study of this version: {error!r}.") from error
