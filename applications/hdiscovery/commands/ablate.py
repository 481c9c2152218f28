"""Train variants of a recipe, measure them alike, and put the measures in one table."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from hdiscovery.commands.train import bar, changed_fields
from hdiscovery.directions.config import DiscoveryConfig, from_preset, presets

HELP = "train variants of a recipe and measure them alike"
EXAMPLES = (
    "hdiscovery ablate MNIST32-demo --out runs/ablation --data DIR",
    "hdiscovery ablate MNIST32-demo --out runs/two --only paper l1-only --steps 200",
    "hdiscovery ablate MNIST32-demo --out runs/own --variants own.toml",
    "# own.toml: a table a variant, such as [strong-l1] with a line lambda_l1 = 3.0",
)
TAKES_FIELDS = True
FIELDS = DiscoveryConfig


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("preset", help=f"the recipe, one of {', '.join(presets())}")
    add("--out", type=Path, required=True, help="folder with a run of each; begun ones go on")
    add("--variants", type=Path, metavar="TOML", help="the variants; by default the paper's")
    add("--only", nargs="+", metavar="NAME", help="some of the variants")
    add("--data", type=Path, help="real images, for FID; without them it is left out")
    add("--features", default="unet", help="feature net of FID, as for evaluate")
    add("--pairs", type=int, default=1000, help="pairs for RCA")
    add("--fresh-pairs", type=int, help="pairs for a fresh reconstructor, as for evaluate")
    add("--fresh-steps", type=int, default=1000, help="its updates")
    add("--images", type=int, default=1000, help="samples for FID")
    add("--samples", type=int, default=8, help="samples that each direction is tried on")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")


def run(options: Namespace) -> None:
    """Train, measure, write ``ablation.json``, ``ablation.md`` and ``ablation.png``, and print."""
    from hdiscovery.ablation import picture, study, variants
    from hdiscovery.directions.open import open_directions
    from hdiscovery.directions.run_folder import RunFolder
    from hdiscovery.dm.device import device_of
    from hdiscovery.evaluate.settings import Sizes, Sources

    table = variants.PAPER if options.variants is None else variants.read_variants(options.variants)
    if options.only:
        unknown = sorted(set(options.only) - set(table))
        if unknown:
            raise ValueError(f"`only` names {unknown}; the variants are: {', '.join(table)}.")
        table = {name: table[name] for name in options.only}
    device = device_of(options.device)
    base = from_preset(options.preset, **changed_fields(options.rest))
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
