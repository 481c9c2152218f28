"""A run folder: its config, its records, its last good checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# The newest first. The one before is kept until the newest is complete and on the disk.
CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")
HISTORY = "history.jsonl"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a training writes. Nothing in it is ever half-written or silently overwritten.

    Attributes:
        path: The folder: ``config.json``, ``history.jsonl``, ``records.jsonl``, ``checkpoint.pt``
            and results.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunFolder:
        """Make a new run folder.

        Raises:
            FileExistsError: If the folder holds a run.
        """
        if (path / "config.json").exists():
            raise FileExistsError(
                f"{path} already holds a run. Continue it with --resume, remove it, or "
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

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file of the run, complete or not at all."""
        return self._replace(name, lambda partial: partial.write_text(text))

    def save_checkpoint(self, state: Mapping[str, Any]) -> Path:
        """Write ``checkpoint.pt``; the one before stays beside it as ``checkpoint.previous.pt``.

        Whenever the process or the machine stops, at least one of the two is complete.
        """
        newest, previous = (self.path / name for name in CHECKPOINTS)

        def write(partial: Path) -> None:
            torch.save(dict(state), partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            if newest.exists():
                newest.replace(previous)

        return self._replace(newest.name, write)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the last good checkpoint, on the CPU, or None if there is none yet.

        A damaged newest one is named in a warning, and the one before is taken.

        Raises:
            ValueError: If all that there are are damaged.
        """
        damaged = []
        for path in (self.path / name for name in CHECKPOINTS):
            if not path.exists():
                continue
            try:
                state = _verified(path)
            except (OSError, ValueError) as error:
                damaged.append(f"{path} ({error})")
                continue
            if damaged:
                warnings.warn(
                    f"The checkpoint {damaged[0]} is damaged; the run goes on from {path.name}, "
                    f"step {state['step']}.",
                    stacklevel=2,
                )
            return state
        if damaged:
            raise ValueError(
                f"The checkpoint {' and '.join(damaged)} is damaged, and there is no other. Remove "
                "it to begin anew."
            )
        return None

    def append_record(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``records.jsonl``."""
        with (self.path / "records.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def append_history(self, entry: Mapping[str, Any]) -> None:
        """Append one line to ``history.jsonl``, and wait until it is on the disk."""
        path = self.path / HISTORY
        cut = path.exists() and not path.read_bytes().endswith(b"\n")
        with path.open("a") as file:
            file.write("\n" * cut + json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def history(self) -> list[dict[str, Any]]:
        """Return the entries of ``history.jsonl``; a line that a kill cut short is left out."""
        path, entries = self.path / HISTORY, []
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
        return entries

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

    def _replace(self, name: str, write: Callable[[Path], object]) -> Path:
        partial, final = self.path / f"{name}.partial", self.path / name
        write(partial)
        partial.replace(final)
        return final


def _verified(path: Path) -> dict[str, Any]:
    """Return a checkpoint whose every byte is as it was written.

    Raises:
        ValueError: If it is not.
    """
    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()  # by the checksum of each entry, which torch.load does not look at
            if bad is not None:
                raise ValueError(f"checksum of {bad}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(str(error).splitlines()[0]) from error
