"""A run folder: its config, its records, its last good checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a training writes. Nothing in it is ever half-written or silently overwritten.

    Attributes:
        path: The folder: ``config.json``, ``records.jsonl``, ``checkpoint.pt`` and results.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunFolder:
        """Make a new run folder.

        Raises:
            FileExistsError: If the folder holds a run.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(
                f"The run folder {path} exists and is not empty. Continue it with `--resume`, or "
                "choose another folder."
            )
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        run.write_json("config.json", config)
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder.

        Raises:
            FileNotFoundError: If there is no run in it.
        """
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{path} is not a run folder: it holds no config.json.")
        return cls(path)

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file of the run."""
        return json.loads((self.path / name).read_text())

    def write_json(self, name: str, content: Any) -> Path:
        """Write a JSON file of the run, complete or not at all."""
        return self._replace(
            name, lambda partial: partial.write_text(json.dumps(content, indent=2))
        )

    def save_checkpoint(self, state: Mapping[str, Any]) -> Path:
        """Write ``checkpoint.pt``; until it is complete the last one stays."""
        return self._replace("checkpoint.pt", lambda partial: torch.save(dict(state), partial))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the last checkpoint, on the CPU, or None if there is none yet.

        Raises:
            ValueError: If the file is damaged.
        """
        path = self.path / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"The checkpoint {path} is damaged: {error}") from error

    def append_record(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``records.jsonl``."""
        with (self.path / "records.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def keep_records(self, *, before: int) -> None:
        """Drop records of steps from ``before`` on: a resumed run writes them again."""
        kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] < before]
        self._replace("records.jsonl", lambda partial: partial.write_text("".join(kept)))

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records; a last line that a kill cut short is left out."""
        path = self.path / "records.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return

    def _replace(self, name: str, write: Any) -> Path:
        partial, final = self.path / f"{name}.partial", self.path / name
        write(partial)
        partial.replace(final)
        return final
