"""Train variants of a recipe, measure them alike, and put the measures in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from hdiscovery.commands.bars import bar
from hdiscovery.commands.flags import read_flags
from hdiscovery.commands.options import Data, Device, Features

EXAMPLES = (
    "hdiscovery ablate MNIST32-demo --out runs/ablation --data DIR",
    "hdiscovery ablate MNIST32-demo --out runs/two --only paper l1-only --steps 200",
    "hdiscovery ablate MNIST32-demo --out runs/own --variants own.toml",
    "# own.toml: a table a variant, such as [strong-l1] with a line lambda_l1 = 3.0",
)


@dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """Train variants of a recipe and measure them alike.

    Attributes:
        preset: Name of the preset that is varied; `hdiscovery train --help` lists them.
        out: Folder with a run of each variant; a run that was begun goes on.
        variants: A TOML file with a table for each variant; by default the paper's ablations.
        only: Names of some of the variants.
        pairs: Pairs for RCA.
        fresh_pairs: Pairs for a fresh reconstructor, as for evaluate.
        fresh_steps: Updates of the fresh reconstructor.
        images: Samples for FID.
        samples: Samples that each direction is tried on.
    """

    preset: tyro.conf.Positional[str]
    out: Path
    variants: Path | None = None
    only: tuple[str, ...] = ()
    data: Data = None
    features: Features = "unet"
    pairs: int = 1000
    fresh_pairs: int | None = None
    fresh_steps: int = 1000
    images: int = 1000
    samples: int = 8
    device: Device = "auto"


def read(words: Sequence[str]) -> tuple[AblateOptions, dict[str, Any]]:
    """Return the command's own options, and the fields that change."""
    from hdiscovery.directions.recipe import preset

    return read_flags(
        AblateOptions, words, command="ablate", examples=EXAMPLES,
        shown=lambda own: preset(own.preset),
    )  # fmt: skip


def run(options: tuple[AblateOptions, dict[str, Any]]) -> None:
    """Train, measure, write ``ablation.json``, ``ablation.md`` and ``ablation.png``, and print."""
    from hdiscovery.ablation import picture, study, variants
    from hdiscovery.directions.open import open_directions
    from hdiscovery.directions.recipe import from_preset
    from hdiscovery.directions.run_folder import RunFolder
    from hdiscovery.dm.device import device_of

    own, fields = options
    table, device = chosen(own), device_of(own.device)
    configs = variants.configs(from_preset(own.preset, **fields), table)
    runs = {name: study.open_variant(own.out, name, c) for name, c in configs.items()}
    reports = {}
    for name, config in configs.items():
        print(f"{name}: {table[name] or 'as it is'}")
        study.train_variant(
            runs[name], config, device=device, shown=partial(bar, total=config.all_steps)
        )
        reports[name] = study.measure_variant(runs[name], device=device, **measures(own))
        folder = RunFolder(own.out)
        folder.write_json("ablation.json", {"variants": table, "reports": reports})
        folder.write_text("ablation.md", study.table(reports) + "\n")
    found = {
        n: (open_directions(run.path, device=device), picture.best_direction(reports[n]))
        for n, run in runs.items()
    }
    drawn = picture.draw_variants(found, own.out / "ablation.png")
    print(study.table(reports))
    print(f"wrote {drawn}")


def chosen(options: AblateOptions) -> dict[str, dict[str, Any]]:
    """Return the variants that are trained.

    Raises:
        ValueError: If there is no variant of a name.
    """
    from hdiscovery.ablation import variants

    given = options.variants
    table = variants.PAPER if given is None else variants.read_variants(given)
    unknown = sorted(set(options.only) - set(table))
    if unknown:
        raise ValueError(f"`only` names {unknown}; the variants are: {', '.join(table)}.")
    return {name: table[name] for name in options.only or table}


def measures(options: AblateOptions) -> dict[str, Any]:
    """Return what is measured of each variant, how much, and by what."""
    from hdiscovery.evaluation.settings import Sizes, Sources

    sizes = Sizes(
        pairs=options.pairs, fresh_pairs=options.fresh_pairs, fresh_steps=options.fresh_steps,
        images=options.images, samples=options.samples,
    )  # fmt: skip
    sources = Sources(data=options.data, features=options.features)
    parts = ("losses", "rca", "fresh", "marks", *(("fid",) if options.data else ()))
    return {"parts": parts, "sizes": sizes, "sources": sources}
