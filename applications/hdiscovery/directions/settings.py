"""The settings of a discovery run, in groups. A recipe has a table for each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from chainograd.chain import Frozen
from chainograd.plans.budget import parse_bytes
from chainograd.plans.planners import PlanName
from hdiscovery.directions.checked import (
    Count,
    CountFromTwo,
    CountFromZero,
    NotNegative,
    Positive,
    check,
)
from hdiscovery.dm.autocast import Autocast
from hdiscovery.networks.reconstructor import ReconstructorName
from hdiscovery.networks.shift_block import ShiftForm


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The frozen diffusion model.

    Attributes:
        dm: A weight file, the folder of a diffusers pipeline, or the name of a shipped diffusion
            model. It is empty in presets whose model is not shipped.
        autocast: "bf16" runs the UNet and the shift block under bfloat16 autocast.
        compile: Train with a UNet that `torch.compile` has compiled, which takes minutes at the
            start. On a CPU it needs a C++ compiler.
        shard_dm: Shard the model over the processes (FSDP2), if it is too large for one GPU.
    """

    dm: str = "MNIST32-small"
    autocast: Autocast = "off"
    compile: bool = False
    shard_dm: bool = False

    def __post_init__(self) -> None:
        check(self, "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """The sampling chain from noise to image.

    Attributes:
        M: Sampling steps.
        grid: Convention of the time grid.
    """

    M: Count = 20
    grid: Literal["asyrp", "author"] = "asyrp"

    def __post_init__(self) -> None:
        check(self, "sampling")
        if self.M > 999:
            raise ValueError(f"`M` can be 999 at most, one step a training time, got {self.M}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftSettings:
    """The directions, and how a shift along them enters the chain.

    Attributes:
        K: Number of directions.
        S: Largest shift; shifts are drawn from U[-S, S].
        min_shift: Smallest absolute value of a shift; the paper has none. The reconstructor cannot
            tell shifts near 0 apart.
        t_stop: Last time (0-based, inclusive) at which samples are shifted.
        update: "asymmetric" lets the shift enter only the predicted x_0, as the paper does;
            "symmetric" lets it enter the predicted noise as well.
    """

    K: CountFromTwo = 32
    S: Positive = 5.0
    min_shift: NotNegative = 0.0
    t_stop: int = 400
    update: Literal["asymmetric", "symmetric"] = "asymmetric"

    def __post_init__(self) -> None:
        check(self, "shift")
        if self.min_shift >= self.S:
            raise ValueError(f"`min_shift` {self.min_shift} must be less than `S`, {self.S}.")
        if not 0 <= self.t_stop <= 999:
            raise ValueError(
                f"`t_stop` is a 0-based training time and must lie in 0 … 999, got {self.t_stop}. "
                "At 0 every step is shifted, at 999 only the first."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworksSettings:
    """The shift block and the reconstructor R; the discriminator D follows from the model.

    Attributes:
        shift_form: Trunk of the shift block, as in ADM's networks or as in DDPM's.
        time_invariant: Build the shift block without an input for the time.
        head_std: Standard deviation of the shift block's heads at the start; the paper's is 0.
        reconstructor: Architecture of R, which predicts k and s from a pair of samples.
        r_dropout: Dropout before the heads of R; the paper has none.
        sync_batch_norm: Compute R's batch norms over the batch of all processes (CUDA only);
            otherwise each process uses its own part.
    """

    shift_form: ShiftForm = "adm"
    time_invariant: bool = False
    head_std: NotNegative = 0.0
    reconstructor: ReconstructorName = "lenet"
    r_dropout: float = 0.0
    sync_batch_norm: bool = False

    def __post_init__(self) -> None:
        check(self, "networks")
        if not 0 <= self.r_dropout < 1:
            raise ValueError(
                f"`r_dropout` is a share and must lie in [0, 1), got {self.r_dropout}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """Weights of the terms of the loss.

    Attributes:
        lambda_G: Weight of the adversarial loss L_G. 0 removes L_G; D still trains, so L_D stays
            a diagnostic.
        lambda_1: Weight of the cross entropy of k.
        lambda_2: Weight of the l1 error of s.
        lambda_l1: Weight of the weighted l1 distance to the unshifted sample, the paper's ablation.
        l1_gamma: gamma in the weight of that distance, gamma / (gamma + |s|).
    """

    lambda_G: NotNegative = 1.0
    lambda_1: NotNegative = 0.1
    lambda_2: NotNegative = 0.1
    lambda_l1: NotNegative = 0.0
    l1_gamma: Positive = 1.0

    def __post_init__(self) -> None:
        check(self, "loss")


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
