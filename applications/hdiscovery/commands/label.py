"""Write what directions do into their run or their file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

HELP = "name the directions of a run or of a file of directions"
EXAMPLES = (
    "hdiscovery label runs/a 3=thicker 7=slanted",
    "hdiscovery label directions.safetensors 3=thicker",
    "hdiscovery label directions.safetensors         # shows what is known of each",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "source", type=Path, metavar="RUN", help="a run's folder, or a directions.safetensors"
    )
    parser.add_argument(
        "labels", nargs="*", metavar="K=TEXT", help="an empty text takes a label away"
    )


def run(options: Namespace) -> None:
    """Change labels, and show all of them."""
    from hdiscovery.directions.publish import located

    path = options.source if options.labels else located(options.source)
    show = label_file if path.is_file() else label_run
    for line in show(path, options.labels):
        print(line)


def label_run(path: Path, words: Sequence[str]) -> list[str]:
    """Change a run's ``labels.json``, which the gallery reads too; return a line a direction."""
    from hdiscovery.directions.config import run_config
    from hdiscovery.directions.publish import own_run
    from hdiscovery.gallery.read import LABELS, read_labels

    run = own_run(path)
    K = run_config(run).shift.K
    known = read_labels(run, K=K)
    labels = changed([known.get(k, "") for k in range(K)], words)
    if words:
        # An empty one is written too, over a name that the run's file of directions may have.
        taken_away = {int(word.partition("=")[0]) for word in words} | known.keys()
        kept = {str(k): text for k, text in enumerate(labels) if text or k in taken_away}
        run.write_json(LABELS, kept)
    return [f"{k} ({text})" if text else str(k) for k, text in enumerate(labels)]


def label_file(path: Path, words: Sequence[str]) -> list[str]:
    """Change the labels in a file of directions; return a line a direction, with its numbers."""
    from hdiscovery.directions.portable import PortableDirections, load_directions, save_directions

    directions = load_directions(path, with_mean=bool(words))
    about = replace(directions.about, labels=changed(directions.about.labels, words))
    if words:
        save_directions(path, PortableDirections(about, directions.global_, directions.mean))
    scales = about.calibration.scales if about.calibration else (None,) * about.K
    return [
        about.title(k)
        + (f", {about.score_name} {score:.2f}" if score is not None else "")
        + (f", calibrated 1 is s = {scale:.2f}" if scale is not None else "")
        for k, (score, scale) in enumerate(zip(about.scores, scales, strict=True))
    ]


def changed(labels: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    """Return labels with those that ``K=TEXT`` words name replaced.

    Raises:
        ValueError: If a word names no direction, or the text would be taken for one.

    Example:
        >>> changed(["", "round"], ["0=thick", "1="])
        ('thick', '')
    """
    new = list(labels)
    for word in words:
        which, equals, text = word.partition("=")
        if not (equals and which.isdecimal() and int(which) < len(new)):
            raise ValueError(
                f"{word!r} does not name a direction: write K=TEXT with K in 0 … {len(new) - 1}."
            )
        if text.isdecimal():
            raise ValueError(f"{word!r}: a label that is a number would be taken for a direction.")
        new[int(which)] = text
    return tuple(new)
