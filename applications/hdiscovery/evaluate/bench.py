"""The measures of one subject, by name. Runs and baselines are measured in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from hdiscovery.directions.subject import Progress, Subject
from hdiscovery.evaluate.digits import digit_classifier_of
from hdiscovery.evaluate.features import feature_net
from hdiscovery.evaluate.fid import measure_fid
from hdiscovery.evaluate.fresh import train_fresh
from hdiscovery.evaluate.kept_pairs import KEPT_BYTES, KeptPairs
from hdiscovery.evaluate.probes import probes_for
from hdiscovery.evaluate.ranking import rank
from hdiscovery.evaluate.rca import accuracy
from hdiscovery.evaluate.real import real_images
from hdiscovery.evaluate.rescoring import rescore
from hdiscovery.evaluate.sweep import Sweep, sweeps


class LeftOut(Exception):  # noqa: N818
    """A measure cannot be taken, for the reason given; the other measures still can."""


class Named(Protocol):
    """A function from a name to a progress bar of that name."""

    def __call__(self, name: str) -> Progress:
        """Return the progress bar."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        pairs: Pairs for RCA; the paper takes 5,000.
        fresh_pairs: Pairs that a fresh reconstructor is trained on; None means 128 for each
            direction. A quarter as many are held out for testing.
        fresh_steps: Updates of the fresh reconstructor.
        images: Raw samples, shifted samples, and at most as many real images, for FID.
        samples: Samples that every direction is applied to, for marks and probes.
        shifts: Shifts of each of these samples, an odd number.
        references: Unshifted samples to compare with.
        batch_size: Samples at once.
        seed: Seed of everything that is drawn.

    Raises:
        ValueError: If a number is out of range.
    """

    pairs: int = 5000
    fresh_pairs: int | None = None
    fresh_steps: int = 2000
    images: int = 5000
    samples: int = 16
    shifts: int = 9
    references: int = 128
    batch_size: int = 64
    seed: int = 1

    def __post_init__(self) -> None:
        least = {"pairs": 1, "fresh_pairs": 2, "fresh_steps": 1, "images": 2, "samples": 2,
                 "shifts": 3, "references": 5, "batch_size": 1, "seed": 0}  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"`{name}` must be at least {bound}, got {value}.")
        if self.shifts % 2 == 0:
            raise ValueError(
                f"`shifts` must be odd, so that s = 0 is in the middle, got {self.shifts}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What the measures need besides the run.

    Attributes:
        data: Folder of real images, or None.
        features: Feature net of FID.
        classifier: File of the classifier of digits, or None.
    """

    data: Path | None = None
    features: str = "unet"
    classifier: Path | None = None


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

    subject: Subject
    sizes: Sizes
    sources: Sources
    progress: Named
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
