"""Groups of settings that say how a run trains: optimizer, steps, memory, seed and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from chainograd.chain import Frozen
from chainograd.plans.budget import parse_bytes
from chainograd.plans.planners import PlanName
from hdiscovery.directions.checked import Count, CountFromTwo, CountFromZero, Positive, check


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """Adam and the moving average.

    Attributes:
        learning_rate: Of Adam, for all three networks.
        learning_rate_R: Of R, if it differs.
        learning_rate_D: Of D, if it differs.
        adam: "dense" also moves directions that a step did not draw, by momentum; "lazy"
            leaves them where they are.
        ema: Decay of the moving average of the shift block, which is then what is evaluated; 0
            keeps no average. Steps that settle use the average's directions.
    """

    learning_rate: Positive = 1e-3
    learning_rate_R: Positive | None = None
    learning_rate_D: Positive | None = None
    adam: Literal["dense", "lazy"] = "dense"
    ema: float = 0.0

    def __post_init__(self) -> None:
        check(self, "optimizer")
        if not 0 <= self.ema < 1:
            raise ValueError(f"`ema` is a decay and must lie in [0, 1), got {self.ema}. Try 0.999.")

    @property
    def rates(self) -> dict[str, float]:
        """Learning rates by the letters of what learns: phi and its heads, omega (R), psi (D)."""
        phi = self.learning_rate
        omega = phi if self.learning_rate_R is None else self.learning_rate_R
        psi = phi if self.learning_rate_D is None else self.learning_rate_D
        return {"phi": phi, "heads": phi, "omega": omega, "psi": psi}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How long, and on which samples.

    Attributes:
        batch_size: Pairs a step, of all processes together.
        steps: Training steps.
        settle_steps: Steps after those, in which the directions stay as they are and only R
            trains: R always lags behind directions that move. No gradient goes through the
            sampler, and R's rate falls to 0 along half a cosine.
        bank: Unshifted samples drawn once, before the training, and used again in every step; 0
            draws new ones in every step.
        r_updates: Updates of R a step; those beyond the first use pairs drawn from a buffer of
            recent pairs. 1 is the paper's recipe.
        r_buffer: Batches in that buffer.
        r_augment: Rotate, scale and move the pairs of the buffer, both images alike, so that R
            does not memorise them.
    """

    batch_size: CountFromTwo = 128
    steps: Count = 3000
    settle_steps: CountFromZero = 0
    bank: CountFromZero = 0
    r_updates: Count = 1
    r_buffer: Count = 8
    r_augment: bool = False

    def __post_init__(self) -> None:
        check(self, "training")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """How the gradient through the chain is computed; every choice returns the same gradient.

    Attributes:
        plan: "nodes" goes back in the memory of one step. "graph" keeps the graphs of all
            M steps and takes a third less time. A number of bytes such as "8GiB" takes the
            fastest plan that fits.
        micro_batch: Samples whose graphs exist at once; the losses see the whole batch. By
            default all samples of a process.
        frozen: "auto" lets layers of the frozen model save less for the backward pass.
            "off" leaves them to torch.
    """

    plan: str = "nodes"
    micro_batch: Count | None = None
    frozen: Frozen = "auto"

    def __post_init__(self) -> None:
        check(self, "memory")
        if self.plan not in get_args(PlanName):
            parse_bytes(self.plan)
        if self.micro_batch is not None and self.plan == "graph":
            raise ValueError(
                f"`plan` 'graph' keeps every graph, and `micro_batch` {self.micro_batch} keeps "
                "none: slices run one after the other. Train with `--plan nodes` or a number of "
                "bytes, or without `micro_batch`."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Where a run begins and what it writes.

    Attributes:
        start_from: Folder of a run whose networks this one begins with, such as a run of fewer
            sampling steps: M = 5 samples with a quarter of the work of M = 20. A published run,
            also a shipped one by its name, has no discriminator and no optimizers; they begin
            anew, as does a reconstructor of another kind. Empty: every network begins anew.
        start_scale: Factor on the directions of that run. A shift adds up over the shifted steps,
            3 of 5 or 12 of 20: from M = 5 to 20, on MNIST, a factor between 0.25 and 0.5 changes
            the images as much as before.
        seed: Of the new networks and of everything that is drawn.
        save_every: Steps between checkpoints. A run keeps two checkpoints.
    """

    start_from: str = ""
    start_scale: Positive = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    save_every: Count = 100

    def __post_init__(self) -> None:
        check(self, "run")
        if self.seed >= 2**30:
            raise ValueError(f"`seed` must be less than 2^30, got {self.seed}.")
