"""Measure a run's directions, and put them in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.directions.open import open_directions
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.shipped import own_run
from hdiscovery.dm.compiled import compile_parts
from hdiscovery.dm.device import device_of
from hdiscovery.evaluation import report
from hdiscovery.evaluation.accuracy_curves import draw_accuracy
from hdiscovery.evaluation.features import feature_net
from hdiscovery.evaluation.fresh import train_fresh
from hdiscovery.evaluation.ranking import Ranking
from hdiscovery.evaluation.ranking import rank as ranked
from hdiscovery.evaluation.rescoring import Rescoring, draw_matrix
from hdiscovery.evaluation.settings import (
    PARTS,
    BaselineName,
    BaselineStrength,
    Part,
    Sizes,
    Sources,
)
from hdiscovery.evaluation.sweep import sweeps
from hdiscovery.progress import Bars, silent


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured of a run.

    Attributes:
        report: The content of ``evaluation.json``. ``subjects`` holds the parts of the run
            (``learnt``) and of each baseline; ``left_out`` says what was not measured, and why.
        pictures: The pictures that were drawn into the run's folder.
    """

    report: dict[str, Any]
    pictures: list[Path]

    def table(self) -> str:
        """Return the report as text: a row for each measure, a column for each subject."""
        return report.table(self.report)


def evaluate(
    run: str | Path,
    *,
    parts: Sequence[Part] = PARTS,
    baselines: Sequence[BaselineName] = (),
    baseline_strength: BaselineStrength = "learnt",
    sizes: Sizes | None = None,
    sources: Sources | None = None,
    compile: bool = False,
    device: str = "auto",
    progress: Bars = silent,
) -> Evaluation:
    """Measure a run's directions, and baselines by the same measures.

    ``evaluation.json`` is written into the run's folder after each part, so work that is stopped
    keeps the parts that were done. Parts that were measured before of the same checkpoint stay in
    the file. ``rca.json``, ``rca.png`` and ``probes-*.png`` are written as well.

    Args:
        run: Folder of a run, published or not. A run that comes with the package is not written
            to: copy it first.
        parts: Some of ``losses``, ``rca``, ``fresh``, ``marks``, ``probes``, ``fid``. All of them
            without real images leave ``fid`` out; ``fid`` by name needs them.
        baselines: Some of ``random``, ``pca``, ``jacobian``: directions that nobody learnt.
        baseline_strength: ``"learnt"`` makes baselines as strong as the run's directions,
            ``"spread"`` as strong as h is spread over samples.
        sizes: How much is measured.
        sources: Real images and feature net.
        compile: Let ``torch.compile`` make the UNet anew: minutes for each size of batch, then
            faster.
        device: ``"auto"`` (CUDA, if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
        progress: Makes a progress bar of a name: ``lambda name: partial(tqdm, desc=name)``.

    Returns:
        The report and the pictures.

    Raises:
        FileNotFoundError: If there is no run, or no real images in ``sources.data``.
        ValueError: If a part is unknown, a size is out of range, or ``fid`` was named without real
            images.

    Cost:
        ``rca`` samples ``pairs`` pairs, ``fresh`` 160 a direction, ``marks`` and ``probes``
        K x ``samples`` x ``shifts`` samples each, ``fid`` twice ``images``; each baseline costs as
        much again.

    Example:
        >>> import hdiscovery
        >>> found = hdiscovery.evaluate(run, parts=["rca"], sizes=Sizes(pairs=4), device="cpu")
        >>> found.report["subjects"]["learnt"]["rca"]["pairs"]
        4
    """
    sizes, sources = sizes or Sizes(), sources or Sources()
    _refuse_fid_without_images(parts, sources)
    folder = own_run(Path(run))
    directions = _opened(folder, device, compile)
    before, measured = _before(folder), {}
    for grown in report.evaluate(
        directions, parts=parts, baselines=baselines,
        strength=baseline_strength, sizes=sizes, sources=sources, progress=progress,
    ):  # fmt: skip
        measured = report.merged(before, grown)
        folder.write_json("evaluation.json", measured)
    return Evaluation(measured, _write_rest(folder, measured))


def rank(
    run: str | Path,
    *,
    sizes: Sizes | None = None,
    sources: Sources | None = None,
    fresh: bool = False,
    twins: float = 0.9,
    compile: bool = False,
    device: str = "auto",
    progress: Bars = silent,
) -> Ranking:
    """Put a run's directions in order without labels, and write ``ranking.json``.

    Args:
        run: Folder of a run, published or not.
        sizes: How much is drawn: ``samples``, ``shifts``, ``references``, ``batch_size`` and, with
            ``fresh``, ``fresh_pairs`` and ``fresh_steps``. Draws use the seed after ``seed``, as
            the part ``marks`` of :func:`evaluate` does.
        sources: The feature net, and the images that the net ``digits`` is trained on.
        fresh: Ask a reconstructor that is trained on ``fresh_pairs`` new pairs instead of the
            run's own.
        twins: Least absolute cosine of two directions that are twins.
        compile: As in :func:`evaluate`.
        device: As in :func:`evaluate`.
        progress: As in :func:`evaluate`.

    Returns:
        The directions, best first.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If a size is out of range.

    Cost:
        K x ``samples`` x ``shifts`` samples, and 160 pairs a direction with ``fresh``.

    Example:
        >>> import hdiscovery
        >>> sizes = Sizes(samples=2, shifts=3, references=5)
        >>> len(hdiscovery.rank(run, sizes=sizes, device="cpu").directions)
        2
    """
    sizes, sources = sizes or Sizes(), sources or Sources()
    folder = own_run(Path(run))
    directions, seed = _opened(folder, device, compile), sizes.seed + 1
    net = feature_net(
        sources.features, directions.dm, data=sources.data, cache=sources.classifier,
        progress=progress("classifier of digits"),
    )  # fmt: skip
    found = sweeps(
        directions, num_samples=sizes.samples, num_shifts=sizes.shifts, seed=seed,
        batch_size=sizes.batch_size, progress=progress("directions"),
    )  # fmt: skip
    R = _new_reconstructor(directions, sizes, progress) if fresh else directions.R
    assert R is not None  # every run has one
    ranking = ranked(
        directions, R, net, found, references=sizes.references, threshold=twins, seed=seed,
        batch_size=sizes.batch_size,
    )  # fmt: skip
    folder.write_json("ranking.json", ranking.content(directions.training().step))
    return ranking


def _opened(run: RunFolder, device: str, compile: bool) -> DirectionSet:
    directions = open_directions(run.path, device=device_of(device))
    if compile:
        compile_parts(directions.dm.unet)
    return directions


def _new_reconstructor(directions: DirectionSet, sizes: Sizes, progress: Bars) -> nn.Module:
    count = 128 * directions.K if sizes.fresh_pairs is None else sizes.fresh_pairs
    return train_fresh(
        directions, train_pairs=count, test_pairs=max(count // 4, 1), steps=sizes.fresh_steps,
        seed=sizes.seed + 1, sampled_at_once=sizes.batch_size,
        progress=progress("pairs for a fresh R"),
    ).R  # fmt: skip


def _refuse_fid_without_images(parts: Sequence[Part], sources: Sources) -> None:
    if "fid" in parts and set(parts) != set(PARTS) and sources.data is None:
        raise ValueError(
            "FID compares samples with real images, and there are none. Pass a folder of them by "
            "`--data DIR` (`sources=Sources(data=...)` in Python), or leave `fid` out."
        )


def _before(run: RunFolder) -> dict[str, Any]:
    if not (run.path / "evaluation.json").is_file():
        return {}
    try:
        return run.read_json("evaluation.json")
    except ValueError as error:
        raise ValueError(
            f"{run.path / 'evaluation.json'} is damaged ({error}). Delete it, and all parts are "
            "measured again."
        ) from error


def _write_rest(run: RunFolder, measured: dict[str, Any]) -> list[Path]:
    """Write what others read, ``rca.json``, and the pictures."""
    drawn = draw_accuracy(measured, run.path / "rca.png")
    pictures = [] if drawn is None else [drawn]
    rca = measured["subjects"].get("learnt", {}).get("rca")
    if rca is not None:
        run.write_json("rca.json", {**rca, "step": measured["step"]})
    for name, results in measured["subjects"].items():
        if "probes" in results:
            path = run.path / f"probes-{name}.png"
            draw_matrix(Rescoring(**results["probes"]), measured["S"], path)
            pictures.append(path)
    return pictures
