"""What an evaluation measures, how much, and by what. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Part = Literal["losses", "rca", "fresh", "marks", "probes", "fid"]
BaselineName = Literal["random", "pca", "jacobian"]
BaselineStrength = Literal["learnt", "spread"]

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        pairs: Pairs for RCA; the paper takes 5,000.
        fresh_pairs: Pairs that a fresh reconstructor is trained on; None means 128 for each
            direction. A quarter as many are held out for testing.
        fresh_steps: Updates of the fresh reconstructor.
        images: Raw samples, shifted samples, and at most as many real images, for FID.
        samples: Samples that every direction is applied to, for marks, probes and rank.
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
    """What is compared with, and what looks at the images.

    Attributes:
        data: Real images: a folder that holds MNIST/raw, or a folder of image files.
        features: Feature net of FID and rank: unet, digits, inception, or a .pt or .pt2 file.
        classifier: File of the classifier of digits; without it, the classifier is kept in
            ``data``.
    """

    data: Path | None = None
    features: str = "unet"
    classifier: Path | None = None
