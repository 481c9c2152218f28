"""Train variants of a recipe, measure them alike, and put the measures in one table."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from hdiscovery.commands.train import bar
from hdiscovery.directions.recipe import from_preset, preset
from hdiscovery.flags import read_flags

HELP = "train variants of a recipe and measure them alike"
EXAMPLES = (
    "hdiscovery ablate MNIST32-demo --out runs/ablation --data DIR",
    "hdiscovery ablate MNIST32-demo --out runs/two --only paper l1-only --steps 200",
    "hdiscovery ablate MNIST32-demo --out runs/own --variants own.toml",
    "# own.toml: a table a variant, such as [strong-l1] with a line lambda_l1 = 3.0",
)
TAKES_FIELDS = OWN_HELP = True


@dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """Train variants of a recipe and measure them alike.

    Attributes:
        preset: Name of the preset that is varied; `hdiscovery train --help` lists them.
        out: Folder with a run of each variant; a run that was begun goes on.
        variants: A TOML file with a table for each variant; by default the paper's ablations.
        only: Names of some of the variants.
        data: Folder of real images, for FID; without it FID is left out.
        features: Feature net of FID, as for evaluate.
        pairs: Pairs for RCA.
        fresh_pairs: Pairs for a fresh reconstructor, as for evaluate.
        fresh_steps: Updates of the fresh reconstructor.
        images: Samples for FID.
        samples: Samples that each direction is tried on.
        device: auto, cpu, cuda, cuda:1, …
    """

    preset: tyro.conf.Positional[str]
    out: Path
    variants: Path | None = None
    only: tuple[str, ...] = ()
    data: Path | None = None
    features: str = "unet"
    pairs: int = 1000
    fresh_pairs: int | None = None
    fresh_steps: int = 1000
    images: int = 1000
    samples: int = 8
    device: str = "auto"


def add_options(parser: ArgumentParser) -> None:
    """Declare nothing: the options are those of `AblateOptions` and the fields of the config."""


def run(arguments: Namespace) -> None:
    """Train, measure, write ``ablation.json``, ``ablation.md`` and ``ablation.png``, and print."""
    from hdiscovery.ablation import picture, study, variants
    from hdiscovery.directions.open import open_directions
    from hdiscovery.directions.run_folder import RunFolder
    from hdiscovery.dm.device import device_of
    from hdiscovery.evaluate.settings import Sizes, Sources

    options, changes = read_flags(
        AblateOptions, arguments.rest, command="ablate", examples=EXAMPLES,
        shown=lambda own: preset(own.preset),
    )  # fmt: skip
    table = variants.PAPER if options.variants is None else variants.read_variants(options.variants)
    if options.only:
        unknown = sorted(set(options.only) - set(table))
        if unknown:
            raise ValueError(f"`only` names {unknown}; the variants are: {', '.join(table)}.")
        table = {name: table[name] for name in options.only}
    device = device_of(options.device)
    base = from_preset(options.preset, **changes)
    configs = variants.configs(base, table)
    runs = {name: study.open_variant(options.out, name, c) for name, c in configs.items()}
    sizes = Sizes(
        pairs=options.pairs, fresh_pairs=options.fresh_pairs, fresh_steps=options.fresh_steps,
        images=options.images, samples=options.samples,
    )  # fmt: skip
    sources = Sources(data=options.data, features=options.features)
    parts = ("losses", "rca", "fresh", "marks", *(("fid",) if options.data else ()))
    reports = {}
    for name, config in configs.items():
        print(f"{name}: {table[name] or 'as it is'}")
        shown = partial(bar, total=config.all_steps, shown=("L_G", "shift_error", "accuracy"))
        study.train_variant(runs[name], config, device=device, shown=shown)
        reports[name] = study.measure_variant(runs[name], parts=parts, sizes=sizes, sources=sources,
                                              device=device)  # fmt: skip
        folder = RunFolder(options.out)
        folder.write_json("ablation.json", {"variants": table, "reports": reports})
        folder.write_text("ablation.md", study.table(reports) + "\n")
    found = {
        n: (open_directions(run.path, device=device), picture.best_direction(reports[n]))
        for n, run in runs.items()
    }
    drawn = picture.draw_variants(found, options.out / "ablation.png")
    print(study.table(reports))
    print(f"wrote {drawn}")
