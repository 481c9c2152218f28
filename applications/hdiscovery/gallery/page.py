"""Writes the gallery: one page, with its pictures in it or, where they are many, beside it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from hdiscovery.gallery.curves import training_curves
from hdiscovery.gallery.render import data_uri, render, write_whole
from hdiscovery.gallery.shown import ShownDirection, ShownRun

INSIDE_UP_TO = 8_000_000  # bytes of pictures; beyond, a browser takes seconds to open the page
GENERATOR = "hdiscovery gallery"
_COMFORTABLE = 64  # CSS pixels of an image in a strip, where there is room


def write_page(path: Path, runs: Sequence[ShownRun], *, title: str | None = None) -> Path:
    """Write a page that shows the directions of one run, or of several side by side.

    Up to 8 MB of pictures are inside the page, which then needs no other file. More of them go
    into the folder ``NAME_files`` beside ``NAME.html`` and are loaded as one scrolls to them: such
    a page is moved together with its folder.

    Args:
        path: The file, ``.html``; its folder is made. It is written complete or not at all.
        runs: The runs, with as many shifts each.
        title: Heading of the page.

    Returns:
        ``path``.

    Raises:
        ValueError: If the arguments are out of range or do not fit each other.
    """
    _check(path, runs)
    directions = [d for run in runs for d in run.directions]
    pictures = [picture for d in directions for picture in (d.sheet, d.animation)]
    beside = sum(map(len, pictures)) > INSIDE_UP_TO
    folder = path.with_name(f"{path.stem}_files")
    path.parent.mkdir(parents=True, exist_ok=True)
    if beside:
        folder.mkdir(exist_ok=True)
        for picture in pictures:
            if not (folder / _name(picture)).exists():
                write_whole(folder / _name(picture), picture)

    def address(picture: bytes) -> str:
        return f"{folder.name}/{_name(picture)}" if beside else data_uri(picture)

    page = render(
        "gallery",
        "page",
        title=title or _title(runs),
        generator=GENERATOR,
        runs=runs,
        curves=[training_curves(run.records, K=run.K, S=run.S) for run in runs],
        address=address,
        edge=edge,
        image_source="data: 'self' file:" if beside else "data:",
        measures=list(dict.fromkeys(name for run in runs for name in run.measure_names())),
        scored=any(d.score is not None for d in directions),
        twins=any(d.twin_of for d in directions),
    )
    write_whole(path, page)
    _sweep(folder, {_name(picture) for picture in pictures} if beside else set())
    return path


def is_gallery(path: Path) -> bool:
    """Say whether a file is a page that :func:`write_page` wrote."""
    return GENERATOR in path.read_text(encoding="utf-8", errors="replace")[:2000]


def edge(direction: ShownDirection) -> int:
    """Return at how many CSS pixels an image is best shown: small ones at a whole multiple."""
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
            f"`runs` shown side by side share one slider, but have {sorted(counts)} shifts. Draw "
            "them with as many columns each."
        )


def _title(runs: Sequence[ShownRun]) -> str:
    models = list(dict.fromkeys(run.dm for run in runs))
    return f"Directions of {' and '.join(models)}"


def _name(picture: bytes) -> str:
    return f"{hashlib.sha256(picture).hexdigest()[:16]}.webp"


def _sweep(folder: Path, wanted: set[str]) -> None:
    """Remove the pictures of an older page, and nothing that is not ours."""
    if not folder.is_dir():
        return
    for file in folder.iterdir():
        if re.fullmatch(r"[0-9a-f]{16}\.webp", file.name) and file.name not in wanted:
            file.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
