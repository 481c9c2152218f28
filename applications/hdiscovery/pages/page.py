"""Write the gallery: one page that holds its pictures, or has them in a folder beside it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from hdiscovery.pages.curves import training_curves
from hdiscovery.pages.render import data_uri, render, write_whole
from hdiscovery.pages.shown import ShownDirection, ShownRun

INSIDE_UP_TO = 8_000_000  # bytes of pictures; a browser needs seconds to open a larger page
GENERATOR = "hdiscovery gallery"
_COMFORTABLE = 64  # CSS pixels of an image in a strip, if there is room


def write_page(path: Path, runs: Sequence[ShownRun], *, title: str | None = None) -> Path:
    """Write a page that shows the directions of one run, or of several runs side by side.

    Up to 8 MB of pictures are embedded in the page, which is then a single file. With more, the
    pictures go into the folder ``NAME_files`` beside ``NAME.html``, and the browser loads them
    when the user scrolls to them. Such a page must be moved together with its folder.

    Args:
        path: The ``.html`` file. Its folder is created. An old file is replaced only by a complete
            new one.
        runs: The runs, all with the same number of shifts.
        title: Heading of the page.

    Returns:
        ``path``.

    Raises:
        ValueError: If the arguments are out of range or do not fit each other.
    """
    _check(path, runs)
    pictures = [p for run in runs for d in run.directions for p in (d.sheet, d.animation)]
    beside = sum(map(len, pictures)) > INSIDE_UP_TO
    folder = path.with_name(f"{path.stem}_files")
    path.parent.mkdir(parents=True, exist_ok=True)
    if beside:
        folder.mkdir(exist_ok=True)
        for picture in pictures:
            if not (folder / _name(picture)).exists():
                write_whole(folder / _name(picture), picture)
    write_whole(path, _page(runs, title or _title(runs), folder.name if beside else None))
    _remove_old(folder, {_name(picture) for picture in pictures} if beside else set())
    return path


def _page(runs: Sequence[ShownRun], title: str, folder: str | None) -> str:
    """Return the page; its pictures are in ``folder``, or embedded if that is None."""
    directions = [d for run in runs for d in run.directions]
    return render(
        "pages",
        "page",
        title=title,
        generator=GENERATOR,
        runs=runs,
        curves=[training_curves(run.records, K=run.K, S=run.S) for run in runs],
        address=lambda picture: f"{folder}/{_name(picture)}" if folder else data_uri(picture),
        edge=edge,
        image_source="data: 'self' file:" if folder else "data:",
        measures=list(dict.fromkeys(name for run in runs for name in run.measure_names())),
        scored=any(d.score is not None for d in directions),
        twins=any(d.twin_of for d in directions),
    )


def is_gallery(path: Path) -> bool:
    """Return whether :func:`write_page` wrote a file."""
    return GENERATOR in path.read_text(encoding="utf-8", errors="replace")[:2000]


def edge(direction: ShownDirection) -> int:
    """Return an image's edge in CSS pixels; small images are enlarged by a whole number."""
    largest = max(direction.image_size)
    return largest * max(1, _COMFORTABLE // largest) if largest <= _COMFORTABLE else _COMFORTABLE


def _check(path: Path, runs: Sequence[ShownRun]) -> None:
    if path.suffix not in (".html", ".htm") or path.is_dir():
        raise ValueError(f"`path` must name an .html file, got {path}. Try {path / 'index.html'}.")
    if not runs:
        raise ValueError("`runs` is empty: there is nothing to show. Pass at least one.")
    counts = {len(run.shifts) for run in runs}
    if len(counts) > 1:
        raise ValueError(
            f"The `runs` have different numbers of shifts, {sorted(counts)}, and cannot share one "
            "slider. Draw all of them with the same number of columns."
        )


def _title(runs: Sequence[ShownRun]) -> str:
    models = list(dict.fromkeys(run.dm for run in runs))
    return f"Directions of {' and '.join(models)}"


def _name(picture: bytes) -> str:
    return f"{hashlib.sha256(picture).hexdigest()[:16]}.webp"


def _remove_old(folder: Path, wanted: set[str]) -> None:
    """Remove the pictures of an older page; files that the gallery did not write stay."""
    if not folder.is_dir():
        return
    for file in folder.iterdir():
        if re.fullmatch(r"[0-9a-f]{16}\.webp", file.name) and file.name not in wanted:
            file.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
