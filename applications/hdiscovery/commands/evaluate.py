"""Measure a run's directions, and baselines by the same measures."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hdiscovery.directions.run_folder import RunFolder

HELP = "measure a run's directions, and baselines by the same measures"
EXAMPLES = (
    "hdiscovery evaluate runs/a --data DIR            # all of it, the paper's 5,000 pairs",
    "hdiscovery evaluate runs/a --only rca --pairs 512",
    "hdiscovery evaluate runs/a --only fresh marks --baselines random pca jacobian",
    "hdiscovery evaluate runs/a --only fid --data DIR --features inception --images 10000",
)
PARTS = ("losses", "rca", "fresh", "marks", "probes", "fid")
BASELINES = ("random", "pca", "jacobian")


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("folder", type=Path, metavar="RUN")
    add(
        "--only",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        metavar="PART",
        help=f"some of {', '.join(PARTS)}; the others of the same checkpoint stay in the file",
    )
    add(
        "--baselines",
        nargs="+",
        choices=BASELINES,
        default=(),
        metavar="NAME",
        help=f"some of {', '.join(BASELINES)}: directions that nobody learnt",
    )
    add(
        "--strength",
        choices=("learnt", "spread"),
        default="learnt",
        help="make baselines as strong as the learnt directions, or as h is spread over samples",
    )
    add("--pairs", type=int, default=5000, help="pairs for RCA; the paper takes 5000")
    add(
        "--fresh-pairs",
        type=int,
        help="pairs a fresh reconstructor is trained on, by default 128 a direction; a quarter "
        "more are held out",
    )
    add("--fresh-steps", type=int, default=2000, help="its updates")
    add("--images", type=int, default=5000, help="samples of each kind for FID")
    add("--samples", type=int, default=16, help="samples each direction is tried on")
    add("--shifts", type=int, default=9, help="shifts of each of them, odd")
    add("--references", type=int, default=128, help="unshifted samples to compare those with")
    add("--data", type=Path, help="real images: a folder of MNIST/raw, or of image files")
    add(
        "--features",
        default="unet",
        metavar="NET",
        help="feature net of FID: unet, digits, inception, or a .pt or .pt2 file",
    )
    add(
        "--classifier",
        type=Path,
        metavar="FILE",
        help="where the classifier of digits is kept; by default in --data",
    )
    add("--batch-size", type=int, default=64, help="samples at once")
    add(
        "--compile",
        action="store_true",
        help="let torch.compile make the UNet anew: minutes for "
        "each size of batch, then faster; for parts that sample thousands, rca, fid and fresh",
    )
    add("--seed", type=int, default=1)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")  # fmt: skip


def run(options: Namespace) -> None:
    """Measure, write ``evaluation.json`` after each part, and print a table."""
    from hdiscovery.directions.saved import open_networks
    from hdiscovery.directions.shipped import own_run
    from hdiscovery.dm.compiled import compile_parts
    from hdiscovery.dm.device import device_of
    from hdiscovery.evaluate.bench import Sizes, Sources
    from hdiscovery.evaluate.report import evaluate, merged, table

    run = own_run(options.folder)
    discovery, step = open_networks(run, device=device_of(options.device))
    if options.compile:
        compile_parts(discovery.dm.unet)
    sizes = Sizes(**{f.name: getattr(options, f.name) for f in fields(Sizes)})
    sources = Sources(data=options.data, features=options.features, classifier=options.classifier)
    records = [record for record in run.records() if record["step"] < step]
    before = _before(run)
    report: dict[str, Any] = {}
    for grown in evaluate(
        discovery, records, step=step, parts=options.only,
        baselines=options.baselines, strength=options.strength, sizes=sizes, sources=sources,
        progress=lambda name: partial(tqdm, desc=name),
    ):  # fmt: skip
        report = merged(before, grown)
        run.write_json("evaluation.json", report)
    _write_rest(run, report)
    print(table(report))


def measure(run: RunFolder, pairs: int) -> dict[str, Any]:
    """Return RCA, written into the run's folder as ``rca.json``."""
    from hdiscovery.directions.saved import open_run, trained_steps
    from hdiscovery.evaluate.rca import measure_rca

    accuracy = asdict(measure_rca(open_run(run), pairs=pairs, progress=partial(tqdm, desc="RCA")))
    run.write_json("rca.json", {**accuracy, "step": trained_steps(run)})
    return accuracy


def _before(run: RunFolder) -> dict[str, Any]:
    if not (run.path / "evaluation.json").is_file():
        return {}
    try:
        return run.read_json("evaluation.json")
    except ValueError as error:
        raise ValueError(
            f"{run.path / 'evaluation.json'} is damaged ({error}): delete it, and it is measured "
            "anew."
        ) from error


def _write_rest(run: RunFolder, report: dict[str, Any]) -> None:
    """Write what others read: ``rca.json``, and the pictures."""
    from hdiscovery.evaluate.accuracy_curves import draw_accuracy
    from hdiscovery.evaluate.rescoring import Rescoring, draw_matrix

    drawn = draw_accuracy(report, run.path / "rca.png")
    if drawn is not None:
        print(f"wrote {drawn}")
    for name, results in report["subjects"].items():
        if name == "learnt" and "rca" in results:
            run.write_json("rca.json", {**results["rca"], "step": report["step"]})
        if "probes" in results:
            path = run.path / f"probes-{name}.png"
            draw_matrix(Rescoring(**results["probes"]), report["S"], path)
            print(f"wrote {path}")
