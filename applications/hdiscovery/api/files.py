"""Refuse to write over files, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """Refuse to replace files.

    Raises:
        FileExistsError: If one of them is there and ``overwrite`` is false.
    """
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        more = f", and {len(there) - 1} more" if len(there) > 1 else ""
        raise FileExistsError(
            f"{there[0]} exists{more}. Choose another `--out`, or replace with `--overwrite`."
        )


def refuse_own(files: Sequence[Path], paths: Sequence[Path]) -> None:
    """Refuse to write over the images that are read.

    Raises:
        FileExistsError: If one of the paths is one of the files.
    """
    given = {file.resolve() for file in files}
    for path in paths:
        if path.resolve() in given:
            raise FileExistsError(
                f"`--out` {path.parent} would put a result in place of the image {path} itself. "
                "Choose another folder."
            )
