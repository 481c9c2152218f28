"""Write a page that shows the directions."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from hdiscovery.commands import evaluate
from hdiscovery.run import RunFolder

HELP = "write a page that shows the directions"
EXAMPLES = ("hdiscovery gallery runs/a",)
add_options = evaluate.add_options


def run(options: Namespace) -> None:
    """Write the page and print where it is."""
    print(show(RunFolder.open(options.folder), options.pairs))


def show(run: RunFolder, pairs: int) -> Path:
    """Return the page, written into the run's folder."""
    from hdiscovery.evaluate.rca import Accuracy
    from hdiscovery.gallery.page import write_gallery
    from hdiscovery.train import open_run

    accuracy = Accuracy(**evaluate.measure(run, pairs))
    return write_gallery(
        open_run(run), run.path, list(run.records()), accuracy, progress=partial(tqdm, desc="page")
    )
