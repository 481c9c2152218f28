"""A study of how clear the directions are to people: make its pages, score its answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg, subcommand

from hdiscovery.commands.bars import bars
from hdiscovery.commands.options import Device, Run, Shifts, Switch

EXAMPLES = (
    "hdiscovery mos make runs/a --raters 16         # writes runs/a/mos",
    "hdiscovery mos score runs/a/mos answers/*.json",
)
RENAMED = {"--examples": "--samples", "--strengths": "--shifts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Make:
    """Write a study as static pages: index.html for its organiser, one file for each rater.

    Each direction goes to two raters. The raters' files can be sent or served.

    Attributes:
        raters: How many people, at least 2.
        out: The study's folder; without it RUN/mos, or mos here for a shipped run.
        samples: Samples of each direction.
        seed: Of samples, codes and assignment.
    """

    run: Run
    raters: int
    out: Path | None = None
    samples: int = 8
    shifts: Shifts = 9
    seed: int = 0
    device: Device = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Merge answers into the mean opinion score, with the raters' agreement.

    Writes mos.json into the study's folder.

    Attributes:
        study: The study's folder.
        answers: The files that raters sent back.
        partial: Score though answers are missing.
    """

    study: Annotated[Positional[Path], arg(metavar="STUDY")]
    answers: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE [FILE ...]")]
    partial: Switch = False


Options = Annotated[Make, subcommand("make")] | Annotated[Score, subcommand("score")]


def run(options: Make | Score) -> None:
    """Make or score."""
    if isinstance(options, Make):
        make_pages(options)
    else:
        score_answers(options)


def make_pages(options: Make) -> None:
    """Write a study, and print where its organiser begins."""
    from hdiscovery.directions.open import open_directions
    from hdiscovery.dm.device import device_of
    from hdiscovery.mos.make import make_study

    out = options.out or (options.run if options.run.exists() else Path()) / "mos"
    directions = open_directions(options.run, device=device_of(options.device))
    make_study(
        directions, out, raters=options.raters,
        examples=options.samples, strengths=options.shifts, seed=options.seed,
        progress=bars("drawing"),
    )  # fmt: skip
    print(f"open {(out / 'index.html').resolve()}")


def score_answers(options: Score) -> None:
    """Score answers, write ``mos.json`` and print a table.

    Raises:
        ValueError: If answers are missing and ``--partial`` was not given.
    """
    import json
    from dataclasses import asdict

    from hdiscovery.mos.answers import missing, read_answers
    from hdiscovery.mos.score import score, table
    from hdiscovery.mos.study import Study
    from hdiscovery.pages.render import write_whole

    study = Study.open(options.study)
    answers = read_answers(study, options.answers)
    if not options.partial:
        _refuse_missing(missing(study, answers))
    result = score(study, answers)
    path = write_whole(options.study / "mos.json", json.dumps(asdict(result), indent=2) + "\n")
    print(table(result))
    print(f"wrote {path}")


def _refuse_missing(absent: list[tuple[str, str]]) -> None:
    if absent:
        named = ", ".join(f"{rater}: {code}" for rater, code in absent[:8])
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        raise ValueError(
            f"{len(absent)} answers are missing: {named}{more}. Ask for them, or pass `--partial` "
            "to score those that are there."
        )
