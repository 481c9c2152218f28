"""Write a page that shows the directions of one run, or of several side by side."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hdiscovery.directions.run_folder import RunFolder

if TYPE_CHECKING:
    from hdiscovery.gallery import ShownRun

HELP = "write a page that shows the directions"
EXAMPLES = (
    "hdiscovery gallery runs/a                       # writes runs/a/index.html",
    "hdiscovery gallery runs/a runs/b --out ab.html  # side by side",
    "cp ~/Downloads/labels.json runs/a               # the next page has the labels",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="runs' folders, or names of shipped runs",
    )
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="the .html file; by default index.html in the run's folder, "
                        "NAME.html here for a shipped one, gallery.html for several")  # fmt: skip
    parser.add_argument("--only", type=int, nargs="+", metavar="K",
                        help="directions to draw; by default all")  # fmt: skip
    parser.add_argument("--pairs", type=int, default=512, help="pairs to measure RCA on")
    parser.add_argument("--samples", type=int, default=6, help="samples of each direction")
    parser.add_argument("--columns", type=int, default=9, help="shifts of each sample, odd")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")


def run(options: Namespace) -> None:
    """Write the page and print where it is."""
    from hdiscovery.directions.publish import located
    from hdiscovery.gallery.draw import even_shifts
    from hdiscovery.gallery.page import is_gallery, write_page

    runs = [RunFolder.open(located(folder)) for folder in options.folders]
    here = options.folders[0]
    own = here / "index.html" if here.exists() else Path(f"{here}.html")  # shipped: not in there
    out = options.out or (own if len(runs) == 1 else Path("gallery.html"))
    if out.is_file() and not is_gallery(out):
        raise FileExistsError(
            f"{out} exists and is no gallery. Move it away, or choose another file by `--out`."
        )
    even_shifts(1.0, options.columns)  # refused now, not after the measuring
    shown = [
        drawn(run, options.pairs, options.samples, options.columns, options.device, options.only)
        for run in runs
    ]
    print(write_page(out, shown))


def show(run: RunFolder, pairs: int) -> Path:
    """Return the page of one run, written into its folder."""
    from hdiscovery.gallery.page import write_page

    return write_page(run.path / "index.html", [drawn(run, pairs)])


def show_shipped(folder: Path) -> list[Path]:
    """Return a page for each run that comes with the package and has directions with a name."""
    from hdiscovery.directions.config import run_config
    from hdiscovery.directions.publish import shipped_runs
    from hdiscovery.gallery.page import write_page
    from hdiscovery.gallery.read import read_labels

    pages = []
    for name, path in shipped_runs().items():
        run = RunFolder.open(path)
        named = read_labels(run, K=run_config(run).shift.K)
        if not named:
            continue
        shown = [drawn(run, pairs=0, only=named)]
        pages.append(write_page(folder / f"{name}.html", shown, title=f"Named directions: {name}"))
    return pages


def drawn(
    run: RunFolder, pairs: int, samples: int = 6, columns: int = 9, device: str = "auto",
    only: Collection[int] | None = None,
) -> ShownRun:  # fmt: skip
    """Measure a run's accuracy, and draw its directions, or only some of them."""
    from hdiscovery.directions.publish import is_published, open_directions
    from hdiscovery.dm.device import device_of
    from hdiscovery.evaluate.rca import measure_rca
    from hdiscovery.gallery.read import shown_run

    discovery, step = open_directions(run, device=device_of(device))
    accuracy = run.read_json("rca.json") if is_published(run) else _measured(run, pairs, step)
    if accuracy is None:
        accuracy = asdict(measure_rca(discovery, pairs=pairs, progress=partial(tqdm, desc="RCA")))
        run.write_json("rca.json", {**accuracy, "step": step})
    bar = partial(tqdm, desc=f"drawing {run.path.name}")
    return shown_run(run, discovery, step, accuracy, only=only, samples=samples,
                     columns=columns, progress=bar)  # fmt: skip


def _measured(run: RunFolder, pairs: int, step: int) -> dict[str, Any] | None:
    """Return the RCA that is there, if it is of this checkpoint and on no fewer pairs."""
    if not (run.path / "rca.json").is_file():
        return None
    accuracy = run.read_json("rca.json")
    return accuracy if accuracy.get("step") == step and accuracy["pairs"] >= pairs else None
