"""What a study is: its directions under codes, and who marks which."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = "hdiscovery-mos-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study, as in its ``study.json``. Raters must not see it: it says which code is which k.

    Attributes:
        id: Its name, in every page and in every file of answers.
        run: What the run is called.
        step: Training steps behind the directions.
        S: Largest shift.
        examples: Samples of each direction.
        strengths: Shifts of each of them, from -S to S.
        seed: Of samples, codes and assignment.
        codes: The code of each direction, k by k.
        raters: The codes that each rater marks, in the order that they are shown.
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
            FileNotFoundError: If there is none in it.
            ValueError: If it is not one of this version's.
        """
        path = folder / "study.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} is not a study: it holds no study.json. `hdiscovery mos make` makes one."
            )
        try:
            entries: dict[str, Any] = json.loads(path.read_text())
            if entries.pop("format") != FORMAT:
                raise ValueError("its format is another")
            return cls(**entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a study of this version: {error!r}.") from error
