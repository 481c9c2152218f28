"""Groups of settings that say what a run discovers: model, chain, shifts, networks, loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hdiscovery.directions.checked import (
    Count,
    CountFromTwo,
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
