"""The measures of one subject, by name. Runs and baselines are measured in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from hdiscovery.data.real import real_images
from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.directions.pairs import Progress
from hdiscovery.evaluation.digits import digit_classifier_of
from hdiscovery.evaluation.features import feature_net
from hdiscovery.evaluation.fid import measure_fid
from hdiscovery.evaluation.fresh import train_fresh
from hdiscovery.evaluation.kept_pairs import KEPT_BYTES, KeptPairs
from hdiscovery.evaluation.probes import probes_for
from hdiscovery.evaluation.ranking import rank
from hdiscovery.evaluation.rca import accuracy
from hdiscovery.evaluation.rescoring import rescore
from hdiscovery.evaluation.settings import Sizes, Sources
from hdiscovery.evaluation.sweep import Sweep, sweeps
from hdiscovery.progress import Bars


class LeftOut(Exception):  # noqa: N818
    """A measure cannot be taken, for the reason given; the other measures still can."""


@dataclass(slots=True, eq=False)
class Bench:
    """The subject being measured, with what the measures share.

    Attributes:
        subject: The directions to be measured.
        sizes: How much is measured.
        sources: Data and nets.
        progress: Makes progress bars.
        R: The subject's own reconstructor (None for a baseline), until `fresh` replaces it.
        kept: The directions' sweeps once they are made, if they fit in `KEPT_BYTES`.
        pairs: Pairs shared by RCA, FID and the fresh reconstructor.
    """

    subject: DirectionSet
    sizes: Sizes
    sources: Sources
    progress: Bars
    R: nn.Module | None
    kept: list[Sweep] = field(default_factory=list)
    pairs: KeptPairs = field(init=False)

    def __post_init__(self) -> None:
        self.pairs = KeptPairs(self.subject, self.sizes.seed, self.sizes.batch_size)

    def bar(self, part: str) -> Progress:
        """Return the progress bar of a part of the report."""
        return self.progress(f"{part} of {self.subject.name}")

    def sweeps(self) -> Iterable[Sweep]:
        """Return every direction's sweep; they are made once if memory can hold them."""
        if self.kept:
            return self.kept
        subject, sizes = self.subject, self.sizes
        made = sweeps(
            subject, num_samples=sizes.samples, num_shifts=sizes.shifts, seed=sizes.seed + 1,
            batch_size=sizes.batch_size, progress=self.bar("directions"),
        )  # fmt: skip
        numbers = subject.K * sizes.samples * sizes.shifts * math.prod(subject.dm.image_shape)
        if 4 * numbers > KEPT_BYTES:
            return made
        self.kept = list(made)
        return self.kept


def _rca(bench: Bench) -> dict[str, Any]:
    subject, sizes = bench.subject, bench.sizes
    if subject.R is None:
        raise LeftOut("no reconstructor was trained with these directions; measure `fresh`")
    drawn = bench.pairs.first(sizes.pairs, bench.bar("RCA"))
    return asdict(accuracy(subject.R, drawn, K=subject.K, S=subject.S))


def _fresh(bench: Bench) -> dict[str, Any]:
    sizes = bench.sizes
    count = 128 * bench.subject.K if sizes.fresh_pairs is None else sizes.fresh_pairs
    held_out = max(count // 4, 1)
    fresh = train_fresh(
        bench.subject, train_pairs=count, test_pairs=held_out, steps=sizes.fresh_steps,
        seed=sizes.seed,
        drawn=bench.pairs.first(count + held_out, bench.bar("pairs for a fresh R")),
    )  # fmt: skip
    bench.R = fresh.R
    return {"test": asdict(fresh.test), "train": asdict(fresh.train)}


def _marks(bench: Bench) -> dict[str, Any]:
    subject, sizes = bench.subject, bench.sizes
    if bench.R is None:
        raise LeftOut("marks need a reconstructor, and these directions have none; measure `fresh`")
    ranking = rank(
        subject, bench.R, feature_net("unet", subject.dm), bench.sweeps(),
        references=sizes.references, seed=sizes.seed + 1, batch_size=sizes.batch_size,
    )  # fmt: skip
    by = "own" if bench.R is subject.R else "fresh"
    return {"reconstructor": by, "mean": ranking.mean(), **asdict(ranking)}


def _probes(bench: Bench) -> dict[str, Any]:
    subject, sizes = bench.subject, bench.sizes
    return asdict(rescore(
        subject, probes_for(subject.dm.image_shape), bench.sweeps(), classifier=_classifier(bench),
        references=sizes.references, seed=sizes.seed + 1, batch_size=sizes.batch_size,
    ))  # fmt: skip


def _fid(bench: Bench) -> dict[str, Any]:
    subject, sizes, sources = bench.subject, bench.sizes, bench.sources
    if sources.data is None:
        raise LeftOut("FID compares with real images, and no data was named; pass `--data DIR`")
    shape = subject.dm.image_shape
    real, source = real_images(sources.data, shape, sizes.images, seed=sizes.seed)
    net = feature_net(sources.features, subject.dm, data=sources.data, cache=sources.classifier,
                      progress=bench.progress("classifier of digits"))  # fmt: skip
    drawn = bench.pairs.first(sizes.images, bench.bar("FID"))
    return asdict(measure_fid(drawn, net, real, source=source, batch_size=sizes.batch_size))


def _classifier(bench: Bench) -> nn.Module | None:
    """Return the classifier of digits if the data is MNIST or a classifier file is named."""
    data, file = bench.sources.data, bench.sources.classifier
    is_mnist = data is not None and (data / "MNIST" / "raw").is_dir()
    if bench.subject.dm.image_shape[0] != 1 or not (is_mnist or file is not None):
        return None
    bar = bench.progress("classifier of digits")
    classifier, _ = digit_classifier_of(bench.subject.dm.image_shape, data, file, progress=bar)
    return classifier.to(bench.subject.device)


MEASURES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "rca": _rca, "fresh": _fresh, "marks": _marks, "probes": _probes, "fid": _fid,
}  # fmt: skip
