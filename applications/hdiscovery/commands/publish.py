"""Write a run without what only its training needs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from hdiscovery.directions.run_folder import RunFolder

HELP = "write a run's directions and what was measured of them into a folder of a few MB"
EXAMPLES = (
    "hdiscovery publish runs/a --out digits",
    "hdiscovery directions digits                     # its means and strengths of equal change",
    "hdiscovery edit digits --image photo.png --direction 3",
    "hdiscovery gallery digits",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")


def run(options: Namespace) -> None:
    """Write, and say how large it is."""
    import torch

    from hdiscovery.directions.publish import publish

    published = publish(
        RunFolder.open(options.folder), options.out, dtype=getattr(torch, options.dtype)
    )
    size = sum(path.stat().st_size for path in published.path.iterdir())
    print(f"wrote {published.path}: {size / 1e6:.1f} MB")
