"""Write the page that shows directions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hdiscovery.directions.config import run_config
from hdiscovery.directions.labels import read_labels
from hdiscovery.directions.open import open_directions
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import is_published
from hdiscovery.directions.shipped import located, shipped_runs
from hdiscovery.dm.device import device_of
from hdiscovery.evaluation.rca import measure_rca
from hdiscovery.pages.draw import even_shifts
from hdiscovery.pages.page import is_gallery, write_page
from hdiscovery.pages.read import shown_run
from hdiscovery.pages.shown import ShownRun
from hdiscovery.progress import Bars, silent


def gallery(
    *runs: str | Path,
    out: str | Path | None = None,
    directions: Collection[int] | None = None,
    pairs: int = 512,
    samples: int = 6,
    shifts: int = 9,
    title: str | None = None,
    device: str = "auto",
    progress: Bars = silent,
) -> Path:
    """Write a page that shows the directions of one run, or of several side by side.

    The directions are sorted by the run's ``ranking.json``, and else by how often the
    reconstructor recognises them. That accuracy is taken from ``rca.json``, or measured and
    written there.

    Args:
        runs: Folders of runs, published or not, or names of runs that come with the package.
        out: The ``.html`` file. By default ``index.html`` in the run's folder, ``NAME.html`` here
            for a run that comes with the package, ``gallery.html`` here for several.
        directions: Directions to draw, None for all.
        pairs: Pairs to measure the accuracy on.
        samples: Samples of each direction.
        shifts: Shifts of each sample, odd.
        title: Heading of the page.
        device: ``"auto"`` (CUDA, if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
        progress: Makes a progress bar of a name.

    Returns:
        The page.

    Raises:
        FileExistsError: If ``out`` is a file that is no gallery.
        FileNotFoundError: If there is no such run.
        ValueError: If an argument is out of range.

    Cost:
        K x ``samples`` x ``shifts`` samples a run, and ``pairs`` pairs if the accuracy is measured.

    Example:
        >>> import hdiscovery
        >>> page = hdiscovery.gallery("digits", out=folder / "thick.html", directions=[10],
        ...                           samples=1, shifts=3, device="cpu")
        >>> page.name
        'thick.html'
    """
    if not runs:
        raise ValueError("No run is named. Name the folder of a run, or several of them.")
    folders = [RunFolder.open(located(Path(run))) for run in runs]
    page = Path(out) if out is not None else _default(runs)
    if page.is_file() and not is_gallery(page):
        raise FileExistsError(
            f"{page} exists and is no gallery. Move it away, or choose another file by `--out`."
        )
    even_shifts(1.0, shifts)  # refused now, not after the measuring
    how = {"samples": samples, "columns": shifts}
    shown = [
        _drawn(run, pairs, directions, device=device, progress=progress, **how) for run in folders
    ]
    return write_page(page, shown, title=title)


def gallery_of_shipped(
    folder: Path, *, device: str = "auto", progress: Bars = silent
) -> list[Path]:
    """Write a page of the named directions of each run that comes with the package."""
    pages = []
    for name, path in shipped_runs().items():
        run = RunFolder.open(path)
        named = read_labels(run, K=run_config(run).shift.K)
        if named:
            pages.append(gallery(
                name, out=folder / f"{name}.html", directions=named, pairs=0,
                title=f"Named directions: {name}", device=device, progress=progress,
            ))  # fmt: skip
    return pages


def _default(runs: tuple[str | Path, ...]) -> Path:
    """Return where a page is written: never into the package."""
    first = Path(runs[0])
    if len(runs) > 1:
        return Path("gallery.html")
    return first / "index.html" if first.exists() else Path(f"{first}.html")


def _drawn(
    run: RunFolder, pairs: int, directions: Collection[int] | None, *, device: str, progress: Bars,
    **how: int,
) -> ShownRun:  # fmt: skip
    """Return what the page shows of a run; its accuracy is measured if it is not known."""
    opened = open_directions(run.path, device=device_of(device))
    step = opened.training().step
    accuracy = run.read_json("rca.json") if is_published(run) else _known(run, pairs, step)
    if accuracy is None:
        accuracy = asdict(measure_rca(opened, pairs=pairs, progress=progress("RCA")))
        run.write_json("rca.json", {**accuracy, "step": step})
    bar = progress(f"drawing {run.path.name}")
    return shown_run(opened, accuracy, only=directions, progress=bar, **how)


def _known(run: RunFolder, pairs: int, step: int) -> dict[str, Any] | None:
    """Return the RCA that is there, if it is of this checkpoint and on no fewer pairs."""
    if not (run.path / "rca.json").is_file():
        return None
    accuracy = run.read_json("rca.json")
    return accuracy if accuracy.get("step") == step and accuracy["pairs"] >= pairs else None
