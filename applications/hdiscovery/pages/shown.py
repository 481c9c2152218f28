"""What a gallery shows of a run and of each of its directions."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hdiscovery.pages.pictures import animation, sheet


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownDirection:
    """What is shown of one direction.

    Attributes:
        k: Index of the direction, from 0.
        samples: How many samples the pictures show.
        image_size: Height and width of one image, in pixels.
        sheet: WebP of all images; a row a sample, a column a shift.
        animation: Animated WebP of the same.
        score: How good the ranking finds it, in [0, 1], or None.
        accuracy: How often the reconstructor recognises it, in [0, 1], or None.
        measures: What else the ranking measured, by name.
        twin_of: The better direction that does the same or, with sign -1, the opposite, and that
            sign; or None.
        label: What the user calls it; may be empty.

    Raises:
        ValueError: If a field is out of range.
    """

    k: int
    samples: int
    image_size: tuple[int, int]
    sheet: bytes
    animation: bytes
    score: float | None = None
    accuracy: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)
    twin_of: tuple[int, int] | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(f"`k` counts directions from 0, got {self.k}. Pass its index.")
        for name in ("score", "accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(
                    f"`{name}` of direction {self.k} must lie in [0, 1], got {value}. Where it was "
                    "not measured, pass None."
                )

    @classmethod
    def of(cls, k: int, strips: Tensor, **known: Any) -> ShownDirection:
        """Return a direction with its pictures made.

        Args:
            k: Index of the direction, from 0.
            strips: ``[num_samples, num_shifts, C, H, W]``, as for
                :func:`~hdiscovery.pages.pictures.sheet`.
            known: The other attributes, where they are known.

        Raises:
            ValueError: If ``strips`` or a field is out of range.
        """
        try:
            pictures = {"sheet": sheet(strips), "animation": animation(strips)}
        except ValueError as error:
            raise ValueError(f"Direction {k}: {error}") from error
        N, _, _, H, W = strips.shape
        return cls(k=k, samples=N, image_size=(H, W), **pictures, **known)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRun:
    """What is shown of a run.

    Attributes:
        name: What the run is called.
        dm: What its diffusion model is called.
        K: Number of directions of the run, of which fewer may be shown.
        S: Largest training shift.
        shifts: s of each column, increasing; 0, the original, is among them.
        directions: In any order.
        records: The training's records, possibly none; see
            :func:`~hdiscovery.pages.curves.training_curves`.
        facts: Names and values for the header.
        alarms: What is wrong with the run, a sentence each.

    Raises:
        ValueError: If a field is out of range, or there is no direction.
    """

    name: str
    dm: str
    K: int
    S: float
    shifts: Sequence[float]
    directions: Sequence[ShownDirection]
    records: Sequence[Mapping[str, float]] = ()
    facts: Mapping[str, str | float] = field(default_factory=dict)
    alarms: Sequence[str] = ()

    def __post_init__(self) -> None:
        increasing = all(a < b for a, b in itertools.pairwise(self.shifts))
        if 0 not in self.shifts or not increasing or not all(map(math.isfinite, self.shifts)):
            raise ValueError(
                "`shifts` must be finite, increase and contain 0, the original, got "
                f"{list(self.shifts)}. `even_shifts(S, 9)` does."
            )
        if not self.directions:
            raise ValueError(
                f"`directions` of run {self.name!r} is empty: there is nothing to show. Pass at "
                "least one."
            )

    def best_first(self) -> list[ShownDirection]:
        """Return the directions by score where there is one, then by accuracy, then the others."""

        def order(d: ShownDirection) -> tuple[bool, float, bool, float, int]:
            return (d.score is None, -(d.score or 0), d.accuracy is None, -(d.accuracy or 0), d.k)

        return sorted(self.directions, key=order)

    @property
    def origin(self) -> int:
        """Column of the original, s = 0."""
        return list(self.shifts).index(0)

    @property
    def fingerprint(self) -> str:
        """A name for these very pictures: a run that was trained on has another."""
        return hashlib.sha256(b"".join(d.sheet for d in self.directions)).hexdigest()[:12]

    def measure_names(self) -> list[str]:
        """Return the names of the measures that the directions have, in the ranking's order."""
        return list(dict.fromkeys(name for d in self.directions for name in d.measures))
