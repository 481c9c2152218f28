"""How samples are made: DDIM in M steps, with a shift in h-space and without."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from chainograd import CheckpointedChain
from chainograd.chain import Frozen
from chainograd.samplers import DDIM, time_grid
from chainograd.samplers.schedule import GridConvention
from hdiscovery.directions.about import UpdateName
from hdiscovery.directions.step import AsymmetricDDIM, ShiftFunction, SymmetricDDIM
from hdiscovery.directions.times import shifted_times
from hdiscovery.dm.autocast import Autocast, autocast
from hdiscovery.dm.model import DiffusionModel

UPDATES: dict[UpdateName, type[AsymmetricDDIM]] = {
    "asymmetric": AsymmetricDDIM,
    "symmetric": SymmetricDDIM,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """The settings of a sampler. `dataclasses.replace` returns the same sampler in other steps.

    Attributes:
        M: Sampling steps.
        t_stop: Last time (0-based, inclusive) at which samples are shifted.
        convention: Convention of the time grid.
        update: Where the shift enters: the predicted x_0 alone, or the noise as well.
        precision: Precision of the networks; the update itself is in the precision of x.
        plan: As in `CheckpointedChain`.
        micro_batch: As in `CheckpointedChain`.
        frozen: As in `CheckpointedChain`.
    """

    M: int
    t_stop: int
    convention: GridConvention = "asyrp"
    update: UpdateName = "asymmetric"
    precision: Autocast = "off"
    plan: str = "nodes"
    micro_batch: int | None = None
    frozen: Frozen = "auto"

    def grid(self, dm: DiffusionModel) -> tuple[int, ...]:
        """Return the M + 1 times of the chain, from the first one down to the end."""
        return time_grid(self.M, dm.schedule.num_train_steps, convention=self.convention)

    def times(self, dm: DiffusionModel) -> tuple[int, ...]:
        """Return the times at which samples are shifted.

        Raises:
            ValueError: If no step is shifted.
        """
        return shifted_times(self.grid(dm), self.t_stop)

    def step(self, dm: DiffusionModel, f: ShiftFunction) -> AsymmetricDDIM:
        """Return one step of sampling under the shift f, ``x, i, k, s -> x``."""
        return UPDATES[self.update](
            dm, f, self.grid(dm), t_stop=self.t_stop, precision=self.precision
        )

    def real(self, dm: DiffusionModel) -> CheckpointedChain:
        """Return the chain without a shift, ``x_T -> x_0``."""
        C = dm.image_shape[0]

        def predict(x: Tensor, t: Tensor) -> Tensor:
            with autocast(self.precision, x.device):
                return dm.unet(x, t)[:, :C].to(x.dtype)

        step = DDIM(predict, dm.schedule, self.grid(dm))
        return CheckpointedChain(step, self.M, micro_batch=self.micro_batch)

    def shifted(self, dm: DiffusionModel, f: ShiftFunction) -> CheckpointedChain:
        """Return the chain under the shift f, ``x_T, k, s -> x_0``; all of its steps are walked."""
        return CheckpointedChain(
            self.step(dm, f), self.M,
            plan=self.plan, micro_batch=self.micro_batch, frozen=self.frozen,
        )  # fmt: skip
