"""Say what a model's file or folder is, and what it does not tell."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial

from hdiscovery.commands.answers import add_answer_options, answers_from, images_from

HELP = "say what a model's file or folder is, what it does not tell, and which answers fit"
EXAMPLES = (
    "hdiscovery inspect MNIST32-small",
    "hdiscovery inspect ddpm-folder --images photos",
    "hdiscovery inspect ema.pt",
    "hdiscovery inspect ema.pt --image-size 256 --images photos",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "dm", metavar="FILE",
        help="a model's file or the name of a shipped one, a diffusers folder, or published "
        "weights",
    )  # fmt: skip
    add_answer_options(parser)


def run(options: Namespace) -> None:
    """Say what a model's file or folder is, and what it does not tell."""
    from hdiscovery.dm.device import device_of
    from hdiscovery.dm.inspection import inspect

    images = partial(images_from, options.images) if options.images else None
    device = device_of(options.device)
    for line in inspect(options.dm, answers_from(options), images, device=device):
        print(line, flush=True)
