"""Measure and rank a run's directions, and baselines by the same measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from hdiscovery.commands.bars import bars
from hdiscovery.commands.options import Device, Run, Switch
from hdiscovery.evaluation.settings import (
    PARTS,
    BaselineName,
    BaselineStrength,
    Part,
    Sizes,
    Sources,
)

if TYPE_CHECKING:
    from hdiscovery.evaluation.ranking import Ranking

EXAMPLES = (
    "hdiscovery evaluate runs/a --data DIR            # all of it, the paper's 5,000 pairs",
    "hdiscovery evaluate runs/a --only rca --pairs 512",
    "hdiscovery evaluate runs/a --only rank           # the gallery's order",
    "hdiscovery evaluate runs/a --only rank --samples 32 --fresh-pairs 4096",
    "hdiscovery evaluate runs/a --only fresh marks --baselines random pca jacobian",
    "hdiscovery evaluate runs/a --only fid --data DIR --features inception --images 10000",
)
RENAMED = {"--strength": "--baseline-strength"}
Chosen = Literal["losses", "rca", "fresh", "marks", "probes", "fid", "rank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Measure and rank a run's directions, and baselines by the same measures.

    Writes evaluation.json into the run's folder after each part, and prints a table.

    Attributes:
        only: Parts to measure. Other parts of the same checkpoint stay in evaluation.json. The
            part rank writes ranking.json, which sorts the gallery; it is measured if it is named.
        baselines: Directions that nobody learnt, put through the same measures.
        baseline_strength: Make baselines as strong as the learnt directions, or as h is spread
            over samples.
        twins: Least absolute cosine of two directions that rank calls twins.
        compile: Let torch.compile make the UNet anew: minutes for each size of batch, then
            faster. It pays for parts that sample thousands: rca, fid and fresh.
    """

    run: Run
    only: tuple[Chosen, ...] = PARTS
    baselines: tuple[BaselineName, ...] = ()
    baseline_strength: BaselineStrength = "learnt"
    twins: Annotated[float, arg(metavar="COSINE")] = 0.9
    sizes: Sizes = field(default_factory=Sizes)
    sources: Sources = field(default_factory=Sources)
    compile: Switch = False
    device: Device = "auto"


def run(options: Options) -> None:
    """Measure, rank if asked to, and print what was found."""
    from hdiscovery.api.evaluate import evaluate, rank

    parts: list[Part] = [part for part in PARTS if options.only.count(part)]
    how = {"sizes": options.sizes, "sources": options.sources, "compile": options.compile,
           "device": options.device, "progress": bars}  # fmt: skip
    if parts:
        found = evaluate(
            options.run, parts=parts, baselines=options.baselines,
            baseline_strength=options.baseline_strength, **how,
        )  # fmt: skip
        print("\n".join([*(f"wrote {path}" for path in found.pictures), found.table()]))
    if "rank" in options.only:
        fresh = options.sizes.fresh_pairs is not None
        print(listed(rank(options.run, fresh=fresh, twins=options.twins, **how)))


def listed(ranking: Ranking) -> str:
    """Return a ranking as text, a line for each direction."""
    from hdiscovery.evaluation.ranking import MARKS

    lines = [f"{'k':>4}  {'score':>5}  " + "  ".join(MARKS)]
    for r in ranking.directions:
        cells = "  ".join(f"{getattr(r, mark):{len(mark)}.2f}" for mark in MARKS)
        twin = ""
        if r.twin_of is not None:
            k, sign = r.twin_of
            twin = f"  {'twin' if sign > 0 else 'mirror twin'} of {k}"
        lines.append(f"{r.k:4d}  {r.score:5.2f}  {cells}{twin}")
    return "\n".join(lines)
