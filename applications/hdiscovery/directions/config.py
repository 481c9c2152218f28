"""What a discovery run is made of, and the presets named as the paper names its models."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields, replace
from importlib import resources
from typing import Any, Literal, get_args

from chainograd.chain import Frozen
from chainograd.plans.budget import parse_bytes
from chainograd.plans.planners import PlanName
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.autocast import Autocast
from hdiscovery.networks.reconstructor import ReconstructorName
from hdiscovery.networks.shift_block import ShiftForm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryConfig:
    """How directions are discovered.

    Attributes:
        dm: A weight file, or the name of a shipped diffusion model; empty in presets whose model
            is not shipped.
        K: Number of directions.
        S: Largest shift; shifts are drawn from U[-S, S].
        M: Sampling steps.
        t_stop: Last time (0-based, inclusive) at which samples are shifted.
        min_shift: Least size of a shift; the paper has none. Shifts near 0 cannot be told apart.
        batch_size: Pairs a step, of all processes together.
        steps: Training steps.
        settle_steps: Steps after those in which the directions stay as they are, and R, which is
            always behind directions that move, learns them to the end. No gradient goes through
            the sampler, and R's rate falls along half a cosine to 0.
        reconstructor: Which network tells k and s from a pair.
        r_updates: Updates of the reconstructor a step; those beyond the first are on pairs drawn
            from a buffer. 1 is the paper's recipe.
        r_buffer: Batches in that buffer.
        r_augment: Turn, scale and move the pairs of the buffer, both images alike, so that the
            reconstructor does not learn them by heart.
        r_dropout: Dropout before the reconstructor's heads; the paper has none.
        sync_batch_norm: Let batch norms of the reconstructor see the batch of all processes (CUDA
            only); otherwise each sees its own process's part.
        update: ``"asymmetric"`` lets the shift enter the predicted x_0 only, as the paper does,
            ``"symmetric"`` the noise as well.
        shift_form: The shift block's trunk: that of ADM's networks or of DDPM's.
        time_invariant: Do not tell the shift block the time.
        head_std: Standard deviation of the shift block's heads at the start; the paper's is 0.
        adam: ``"dense"`` also moves directions that were not drawn, by momentum; ``"lazy"`` leaves
            them where they are.
        learning_rate: Of Adam, for all three networks.
        learning_rate_R: Of the reconstructor, if it is another.
        learning_rate_D: Of the discriminator, if it is another.
        lambda_G: Weight of what the discriminator says. At 0 it is trained and not listened to.
        lambda_1: Weight of the cross entropy over k.
        lambda_2: Weight of the l1 error of s.
        lambda_l1: Weight of the weighted l1 distance to the unshifted sample, the paper's ablation.
        l1_gamma: gamma of its weight, ``gamma / (gamma + |s|)``.
        ema: Decay of the moving average of the shift block that is evaluated; 0 is none. Steps
            that settle have the average's directions.
        bank: Unshifted samples drawn once, before the training, instead of anew in every step; 0
            is none.
        plan: ``"nodes"`` goes back in the memory of one step, ``"graph"`` keeps the graphs of all M
            and takes a third less time, a number of bytes such as ``"8GiB"`` takes what fits; the
            gradients are the same.
        micro_batch: Samples whose graphs are there at once; the losses see the whole batch. None is
            all of a process's.
        frozen: ``"auto"`` lets layers of the frozen model keep less; gradients are the same.
            ``"off"`` leaves them to torch.
        shard_dm: Share the frozen model out over the processes (FSDP2), where it is too large for
            one GPU.
        autocast: ``"bf16"`` runs the UNet and the shift block under bfloat16 autocast.
        compile: Train with a UNet that `torch.compile` has made anew, after minutes at the start.
            On a CPU it needs a C++ compiler.
        grid: Convention of the time grid.
        start_from: Folder of a run whose networks this one begins with, such as one of fewer
            sampling steps: one of M = 5 samples with a quarter of the work of M = 20. Or a
            published run, also by its name if it is shipped, whose discriminator and optimizers
            begin anew. A reconstructor of another kind begins anew, too. Empty is none.
        start_scale: What the directions of that run are multiplied by. A shift adds up over the
            shifted steps, 3 of 5 or 12 of 20: from M = 5 to 20, on MNIST, something between 0.25
            and 0.5 changes the images as much as before.
        seed: Of the new networks and of all that is drawn.
        save_every: Steps between checkpoints.

    Raises:
        ValueError: If a field is out of range.
    """

    dm: str = "MNIST32-small"
    K: int = 32
    S: float = 5.0
    M: int = 20
    t_stop: int = 400
    min_shift: float = 0.0
    batch_size: int = 128
    steps: int = 3000
    settle_steps: int = 0
    reconstructor: ReconstructorName = "lenet"
    r_updates: int = 1
    r_buffer: int = 8
    r_augment: bool = False
    r_dropout: float = 0.0
    sync_batch_norm: bool = False
    update: Literal["asymmetric", "symmetric"] = "asymmetric"
    shift_form: ShiftForm = "adm"
    time_invariant: bool = False
    head_std: float = 0.0
    adam: Literal["dense", "lazy"] = "dense"
    learning_rate: float = 1e-3
    learning_rate_R: float | None = None
    learning_rate_D: float | None = None
    lambda_G: float = 1.0
    lambda_1: float = 0.1
    lambda_2: float = 0.1
    lambda_l1: float = 0.0
    l1_gamma: float = 1.0
    ema: float = 0.0
    bank: int = 0
    plan: str = "nodes"
    micro_batch: int | None = None
    frozen: Frozen = "auto"
    shard_dm: bool = False
    autocast: Autocast = "off"
    compile: bool = False
    grid: Literal["asyrp", "author"] = "asyrp"
    start_from: str = ""
    start_scale: float = 1.0
    seed: int = 0
    save_every: int = 10

    def __post_init__(self) -> None:
        for name, least in (("K", 2), ("M", 1), ("batch_size", 2), ("steps", 1), ("r_updates", 1),
                            ("r_buffer", 1), ("save_every", 1), ("bank", 0), ("seed", 0),
                            ("micro_batch", 1), ("settle_steps", 0)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}."
                )
        if self.seed >= 2**30:
            raise ValueError(f"`seed` must be less than 2^30, got {self.seed}.")
        if self.M > 999:
            raise ValueError(f"`M` can be 999 at most, one step a training time, got {self.M}.")
        for name in ("S", "learning_rate", "learning_rate_R", "learning_rate_D", "l1_gamma",
                     "start_scale"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be positive and finite, got {value}.")
        for name in ("lambda_G", "lambda_1", "lambda_2", "lambda_l1", "head_std", "min_shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"`{name}` must be at least 0 and finite, got {getattr(self, name)}."
                )
        if self.min_shift >= self.S:
            raise ValueError(f"`min_shift` {self.min_shift} must be less than `S`, {self.S}.")
        if not 0 <= self.r_dropout < 1:
            raise ValueError(
                f"`r_dropout` is a share and must lie in [0, 1), got {self.r_dropout}."
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"`ema` is a decay and must lie in [0, 1), got {self.ema}. Try 0.999.")
        if self.plan not in get_args(PlanName):
            parse_bytes(self.plan)
        if self.micro_batch is not None and self.plan == "graph":
            raise ValueError(
                f"`plan` 'graph' keeps every graph, and `micro_batch` {self.micro_batch} keeps "
                "none: slices run one after the other. Train with `--plan nodes` or a number of "
                "bytes, or without `micro_batch`."
            )
        if not 0 <= self.t_stop <= 999:
            raise ValueError(
                f"`t_stop` is a 0-based training time and must lie in 0 … 999, got {self.t_stop}. "
                "At 0 every step is shifted, at 999 the first alone."
            )

    @property
    def rates(self) -> dict[str, float]:
        """Learning rates by the letters of what learns: phi and its heads, omega (R), psi (D)."""
        phi = self.learning_rate
        omega = phi if self.learning_rate_R is None else self.learning_rate_R
        psi = phi if self.learning_rate_D is None else self.learning_rate_D
        return {"phi": phi, "heads": phi, "omega": omega, "psi": psi}

    @property
    def all_steps(self) -> int:
        """Steps of both kinds."""
        return self.steps + self.settle_steps

    def settle_rate(self, step: int) -> float:
        """Return R's learning rate in one of the steps that are R's own."""
        share = (step - self.steps) / self.settle_steps
        return self.rates["omega"] * (1 + math.cos(math.pi * share)) / 2

    def changed(self, **changes: Any) -> DiscoveryConfig:
        """Return the config of a run that goes on with other settings.

        Raises:
            ValueError: If a setting is changed that the networks or what was recorded depend on.
        """
        refused = [
            name
            for name, value in changes.items()
            if name not in CHANGEABLE and value != getattr(self, name)
        ]
        if refused:
            raise ValueError(
                f"`{refused[0]}` of a run cannot change on its way (it is "
                f"{getattr(self, refused[0])!r}). Those that can: {', '.join(CHANGEABLE)}. Start a "
                "new run for the others."
            )
        return replace(self, **changes)


CHANGEABLE = ("steps", "settle_steps", "learning_rate", "learning_rate_R", "learning_rate_D",
              "lambda_G", "lambda_1", "lambda_2", "lambda_l1", "l1_gamma", "min_shift",
              "batch_size", "r_updates", "r_buffer", "r_augment", "r_dropout", "ema", "plan",
              "micro_batch", "frozen", "shard_dm", "autocast", "compile",
              "save_every")  # fmt: skip
CHOICES = {"update": ("asymmetric", "symmetric"), "adam": ("dense", "lazy"),
           "frozen": get_args(Frozen), "autocast": get_args(Autocast),
           "reconstructor": get_args(ReconstructorName), "shift_form": get_args(ShiftForm),
           "grid": ("asyrp", "author")}  # fmt: skip


# What the networks of a run are made by: the same in a run that begins with another's.
MADE_BY = ("dm", "K", "shift_form", "time_invariant", "adam")


def presets() -> dict[str, Any]:
    """Return the preset files by name."""
    folder = resources.files("hdiscovery") / "presets"
    return {f.name[: -len(".toml")]: f for f in folder.iterdir() if f.name.endswith(".toml")}


def from_preset(name: str, **changes: Any) -> DiscoveryConfig:
    """Return a preset's config, with some fields replaced.

    Raises:
        ValueError: If there is no such preset, it has an unknown field, or it needs a ``dm``.

    Example:
        >>> from_preset("MNIST32-400-20-32-5", K=8).K
        8
    """
    if name not in presets():
        raise ValueError(f"`preset` {name!r} is unknown; there are: {', '.join(presets())}.")
    config = _config(tomllib.loads(presets()[name].read_text()), f"Preset {name!r}")
    config = replace(config, **changes)
    if not config.dm:
        raise ValueError(
            f"Preset {name!r} needs its diffusion model, which is not shipped: pass `--dm FILE`. "
            "Published ADM and PDAE weights become such a file by `hdiscovery convert`."
        )
    return config


def run_config(run: RunFolder) -> DiscoveryConfig:
    """Return the config that a run was started with.

    Raises:
        ValueError: If it is not one of this version's.
    """
    return _config(run.read_json("config.json"), f"{run.path / 'config.json'}")


def _config(entries: dict[str, Any], source: str) -> DiscoveryConfig:
    unknown = set(entries) - {field.name for field in fields(DiscoveryConfig)}
    if unknown:
        raise ValueError(f"{source} has unknown fields {sorted(unknown)}.")
    return DiscoveryConfig(**entries)
