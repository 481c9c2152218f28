"""What is known about directions besides their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from chainograd.samplers.schedule import GridConvention

UpdateName = Literal["asymmetric", "symmetric"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """For each direction, the strength at which images change by as much as for the others.

    Attributes:
        scales: s of each direction; None if even S changes images less than the target.
        target: The change that all directions make, a `distance`.
        features: Name of the features that measured it.
        samples: Number of images that it is averaged over, each shifted both ways.
    """

    scales: tuple[float | None, ...]
    target: float
    features: str
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is known about directions besides their tensors.

    Attributes:
        dm: Weight file or shipped model that they were found in, as the run named it.
        dm_hash: Hash of that diffusion model; see `dm_hash`.
        shift_block_hash: Hash of the shift block that they were measured from.
        K: Number of directions.
        S: Largest training shift.
        M: Sampling steps of the training.
        t_stop: Last time (inclusive) at which samples are shifted.
        grid: Convention of the time grid.
        update: Where the shift enters: the predicted x_0 alone, or the noise as well.
        times: The shifted times of the M steps, falling.
        samples: Number of samples that the means are over; 0 without means.
        seed: Seed of these samples.
        labels: A text for each direction, possibly empty.
        scores: A number for each direction, larger is better, or None.
        score_name: What the scores are.
        calibration: Strengths of equal change, or None.

    Raises:
        ValueError: If labels, scores or calibration are not K.
    """

    dm: str
    dm_hash: str
    shift_block_hash: str
    K: int
    S: float
    M: int
    t_stop: int
    grid: GridConvention
    update: UpdateName
    times: tuple[int, ...]
    samples: int = 0
    seed: int = 0
    labels: tuple[str, ...]
    scores: tuple[float | None, ...]
    score_name: str = ""
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        scales = (None,) * self.K if self.calibration is None else self.calibration.scales
        for name, values in (
            ("labels", self.labels), ("scores", self.scores), ("scales", scales)
        ):  # fmt: skip
            if len(values) != self.K:
                raise ValueError(
                    f"`{name}` must have one entry for each of the {self.K} directions, got "
                    f"{len(values)}."
                )

    def unnamed(self) -> About:
        """Return the same for other directions, of which no label, score or strength is known."""
        nothing = (None,) * self.K
        return replace(self, labels=("",) * self.K, scores=nothing, score_name="", calibration=None)

    def title(self, k: int) -> str:
        """Return the name of a direction, such as ``3 (thicker)``."""
        return f"{k} ({self.labels[k]})" if self.labels[k] else str(k)

    def scales(self, k: Sequence[int]) -> list[float]:
        """Return the s of calibrated strength 1, for each of some directions.

        Raises:
            ValueError: If they were not calibrated, or a direction does not reach the target.
        """
        if self.calibration is None:
            raise ValueError(
                "`--unit calibrated`: these directions were not calibrated. `hdiscovery "
                "publish RUN --to file` calibrates them, without `--no-calibration`."
            )
        found = []
        for j in k:
            scale = self.calibration.scales[j]
            if scale is None:
                raise ValueError(
                    f"`--unit calibrated`: direction {self.title(j)} changes images less than "
                    f"the others even at S = {self.S:g}. Give it a plain strength."
                )
            found.append(scale)
        return found
