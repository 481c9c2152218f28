"""A study of how clear the directions are to people: make its pages, score its answers."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tqdm import tqdm

from hdiscovery.directions.run_folder import RunFolder

HELP = "ask people: make a study's pages, score its answers"
EXAMPLES = (
    "hdiscovery mos make runs/a --raters 16         # writes runs/a/mos",
    "hdiscovery mos score runs/a/mos answers/*.json",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the two acts and their options."""
    add = parser.add_subparsers(required=True, metavar="ACT", dest="act").add_parser
    make = add(
        "make", help="write a study as static pages, one a rater",
        description="Write a study as static pages: index.html for its organiser, one file a "
        "rater to send or to serve. Each direction goes to two raters.",
        epilog="example:\n  hdiscovery mos make runs/a --raters 16 --out study",
        formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    make.add_argument("folder", type=Path, metavar="RUN")
    make.add_argument("--raters", type=int, required=True, help="how many people, at least 2")
    make.add_argument(
        "--out",
        type=Path,
        help="the study's folder, by default RUN/mos; mos here for a shipped run",
    )
    make.add_argument("--examples", type=int, default=8, help="samples of each direction")
    make.add_argument("--strengths", type=int, default=9, help="shifts of each sample, odd")
    make.add_argument("--seed", type=int, default=0, help="of samples, codes and assignment")
    make.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    make.set_defaults(do=make_pages)
    score = add(
        "score", help="merge answers into the mean opinion score",
        description="Merge answers into the mean opinion score, with inter-rater agreement; "
        "writes mos.json into the study's folder.",
        epilog="example:\n  hdiscovery mos score study study/answers/*.json",
        formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    score.add_argument("study", type=Path, metavar="STUDY")
    score.add_argument("answers", type=Path, nargs="+", metavar="FILE", help="one a rater")
    score.add_argument("--partial", action="store_true", help="score though answers are missing")
    score.set_defaults(do=score_answers)


def run(options: Namespace) -> None:
    """Make or score."""
    options.do(options)


def make_pages(options: Namespace) -> None:
    """Write a study, and print where its organiser begins."""
    from hdiscovery.directions.saved import open_networks
    from hdiscovery.directions.shipped import located
    from hdiscovery.dm.device import device_of
    from hdiscovery.mos.make import make_study

    run = RunFolder.open(located(options.folder))
    out = options.out or (options.folder if options.folder.exists() else Path()) / "mos"
    discovery, step = open_networks(run, device=device_of(options.device))
    make_study(
        discovery, out, run=run.path.resolve().name,
        step=step, raters=options.raters, examples=options.examples,
        strengths=options.strengths, seed=options.seed, progress=partial(tqdm, desc="drawing"),
    )  # fmt: skip
    print(f"open {(out / 'index.html').resolve()}")


def score_answers(options: Namespace) -> None:
    """Score answers, write ``mos.json`` and print a table.

    Raises:
        ValueError: If answers are missing and ``--partial`` was not given.
    """
    from hdiscovery.gallery.render import write_whole
    from hdiscovery.mos.answers import missing, read_answers
    from hdiscovery.mos.score import score, table
    from hdiscovery.mos.study import Study

    study = Study.open(options.study)
    answers = read_answers(study, options.answers)
    absent = missing(study, answers)
    if absent and not options.partial:
        named = ", ".join(f"{rater}: {code}" for rater, code in absent[:8])
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        raise ValueError(
            f"{len(absent)} answers are missing: {named}{more}. Ask for them, or pass `--partial` "
            "to score those that are there."
        )
    result = score(study, answers)
    path = write_whole(options.study / "mos.json", json.dumps(asdict(result), indent=2) + "\n")
    print(table(result))
    print(f"wrote {path}")
