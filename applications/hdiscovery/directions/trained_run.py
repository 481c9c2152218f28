"""The training that directions come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.networks.reconstructor import build_reconstructor


@dataclass(frozen=True, slots=True, eq=False)
class TrainedRun:
    """A training, as far as its directions' measures ask for it.

    Attributes:
        config: How the run was made.
        step: Training steps behind the directions.
        folder: The run's folder; None for networks that are in memory alone.
    """

    config: DiscoveryConfig
    step: int = 0
    folder: RunFolder | None = None

    @property
    def min_shift(self) -> float:
        """Least size of a shift in the training."""
        return self.config.shift.min_shift

    @property
    def weights(self) -> tuple[float, float]:
        """lambda_1 and lambda_2, of the cross entropy and of the l1 error."""
        return self.config.loss.lambda_1, self.config.loss.lambda_2

    @property
    def augment(self) -> bool:
        """Whether a reconstructor that sees a pair again sees it turned, scaled and moved."""
        return self.config.training.r_augment

    def in_folder(self) -> RunFolder:
        """Return the run's folder.

        Raises:
            ValueError: If the networks are in memory alone.
        """
        if self.folder is None:
            raise ValueError(
                "These directions have no run folder: they are of networks in memory. Train in a "
                "folder, and open it by `hdiscovery.open(FOLDER)`."
            )
        return self.folder

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the steps behind the directions; none without a folder.

        A training that was stopped has recorded steps after its last checkpoint.
        """
        if self.folder is None:
            return []
        return [record for record in self.folder.records() if record["step"] < self.step]

    def new_reconstructor(self, image_shape: tuple[int, int, int]) -> nn.Module:
        """Return an untrained reconstructor of the run's architecture for images of a shape."""
        config, (channels, size, _) = self.config, image_shape
        return build_reconstructor(
            config.networks.reconstructor, channels=channels, image_size=size,
            num_directions=config.shift.K, dropout=config.networks.r_dropout,
        )  # fmt: skip
