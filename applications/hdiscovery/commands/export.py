"""Turn a diffusion model into a folder that diffusers loads."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

HELP = "turn a diffusion model into a folder that diffusers loads"
EXAMPLES = (
    "hdiscovery export MNIST32-small --out mnist",
    "# then, in Python: diffusers.DDIMPipeline.from_pretrained('mnist')",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("dm", help="weight file or shipped diffusion model")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")


def run(options: Namespace) -> None:
    """Turn a diffusion model into a diffusers folder."""
    from hdiscovery.dm.export.diffusers_folder import write_folder
    from hdiscovery.dm.open import load_dm

    write_folder(load_dm(options.dm), options.out)
    print(f"wrote {options.out}")
