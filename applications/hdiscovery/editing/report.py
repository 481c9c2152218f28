"""The content of ``properties.json``, and its averages in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from hdiscovery.directions.portable import PortableDirections
from hdiscovery.editing.likeness import Cosines, Difference, between_directions

FORMAT = "hdiscovery-properties-1"


def report(
    means: PortableDirections,
    cosines: Sequence[Cosines],
    differences: Sequence[Mapping[str, Difference]],
    **settings: Any,
) -> dict[str, Any]:
    """Return everything that was measured, ready for JSON.

    Args:
        means: The mean and global directions.
        cosines: The cosines of each direction.
        differences: The differences of each direction, by name of the features.
        settings: Settings of the measurement.
    """
    about = means.about
    return {
        "format": FORMAT,
        "dm": about.dm,
        "dm_hash": about.dm_hash,
        "shift_block_hash": about.shift_block_hash,
        "samples_of_the_means": about.samples,
        **settings,
        "times": about.times,
        "cosine_between_directions": between_directions(means.global_),
        "directions": [
            _of_direction(k, about.labels[k], cosines[k], differences[k]) for k in range(about.K)
        ],
    }


def _of_direction(
    k: int, label: str, cosines: Cosines, differences: Mapping[str, Difference]
) -> dict[str, Any]:
    of_features = {name: asdict(difference) for name, difference in differences.items()}
    return {"k": k, "label": label, "cosines": asdict(cosines), "differences": of_features}


def sentences(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences with the averages over directions and times of a `report`."""
    of_k = report["directions"]
    for name, words in (
        ("direct_mean", "a sample's direction and the mean direction"),
        ("direct_global", "a sample's direction and the global direction"),
        ("mean_global", "the mean and the global direction"),
    ):
        yield f"cosine of {words}: {fmean(fmean(d['cosines'][name]) for d in of_k):.3f}"
    yield f"abs(cosine) of two different directions: {report['cosine_between_directions']:.3f}"
    for feature in of_k[0]["differences"]:
        mean, global_, another = (
            fmean(d["differences"][feature][name] for d in of_k)
            for name in ("mean", "global_", "another")
        )
        yield (
            f"{feature}: relative difference from the direct edit: {mean:.2f} (mean), "
            f"{global_:.2f} (global), {another:.2f} (another direction)"
        )
