"""Write what directions do into their file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

HELP = "name the directions of a file"
EXAMPLES = ("hdiscovery label runs/a/directions.safetensors 3=thicker 7=slanted",)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a directions.safetensors")
    parser.add_argument(
        "labels", nargs="*", metavar="K=TEXT", help="an empty text takes a label away"
    )


def run(options: Namespace) -> None:
    """Change labels, and show all of them with what else is known of each direction."""
    from hdiscovery.editing.portable import PortableDirections, load_directions, save_directions

    directions = load_directions(options.file)
    about = directions.about
    labels = list(about.labels)
    for text in options.labels:
        which, equals, label = text.partition("=")
        if not (equals and which.isdecimal() and int(which) < about.K):
            raise ValueError(
                f"{text!r} does not name a direction: write K=TEXT with K in 0 … {about.K - 1}."
            )
        if label.isdecimal():
            raise ValueError(f"{text!r}: a label that is a number would be taken for a direction.")
        labels[int(which)] = label
    if options.labels:
        about = replace(about, labels=tuple(labels))
        save_directions(
            options.file, PortableDirections(about, directions.global_, directions.mean)
        )
    for k in range(about.K):
        score, calibration = about.scores[k], about.calibration
        scale = calibration.scales[k] if calibration else None
        print(
            f"{about.title(k)}"
            + (f", {about.score_name} {score:.2f}" if score is not None else "")
            + (f", calibrated 1 is s = {scale:.2f}" if scale is not None else "")
        )
