"""How a diffusion model is pre-trained."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hdiscovery.directions.checked import Count, CountFromZero, Positive, check
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.autocast import Autocast

# The shipped DM: as small as GroupNorm's 32 groups allow, with the paper's 4x4 bottleneck.
SMALL_MNIST = UNetConfig(
    image_size=32,
    in_channels=1,
    num_channels=32,
    channel_mult=(1, 1, 2, 4),
    num_res_blocks=1,
    attention_order="new",
    resblock_updown=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """How a diffusion model is trained on MNIST.

    Attributes:
        out: Run folder; the weights end up in OUT/dm.safetensors.
        data: Folder that holds torchvision's MNIST/raw; MNIST is downloaded if it is not there.
        unet: Architecture; by default the shipped model's.
        init: Weights to start from, a file or the name of a shipped model, of the same
            architecture; without it they are drawn from the seed.
        steps: Optimizer steps.
        batch_size: Images a step.
        learning_rate: Peak rate of Adam, after the warm-up.
        warmup_steps: Steps over which the rate rises from 0.
        rate: "cosine" falls to 0 at the last step, "constant" stays.
        ema_decay: Decay of the moving average of the weights, which is the result; the average is
            shorter at the start.
        autocast: "bf16" runs the UNet under bfloat16 autocast.
        sample_every: Steps between sample sheets OUT/samples-STEP.png; 0 for none.
        save_every: Steps between checkpoints.
        seed: Of weights, batches and noise.
        device: auto, cpu or cuda.
        resume: Continue the run in OUT.
    """

    out: Path
    data: Path = Path("data")
    unet: UNetConfig = field(default_factory=lambda: SMALL_MNIST)
    init: str | None = None
    steps: Count = 10_000
    batch_size: Count = 64
    learning_rate: Positive = 1e-3
    warmup_steps: CountFromZero = 200
    rate: Literal["cosine", "constant"] = "cosine"
    ema_decay: float = 0.999
    autocast: Autocast = "off"
    sample_every: CountFromZero = 1000
    save_every: Count = 250
    seed: int = 0
    device: str = "auto"
    resume: bool = False

    def __post_init__(self) -> None:
        check(self, "pretrain")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie in [0, 1), got {self.ema_decay}.")


def as_json(config: PretrainConfig) -> dict[str, Any]:
    """Return a config as ``config.json`` holds it."""
    return json.loads(json.dumps(asdict(config), default=str))


def begun(out: Path) -> PretrainConfig:
    """Return the config of the pretraining in a folder.

    Raises:
        FileNotFoundError: If there is no run in it.
        ValueError: If the run is not a pretraining of this version.
    """
    content = RunFolder.open(out).read_json("config.json")
    try:
        unet: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in content["unet"].items()
        }
        paths = {k: content[k] and Path(content[k]) for k in ("out", "data")}
        return PretrainConfig(**{**content, **paths, "unet": UNetConfig(**unet), "out": out})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{out / 'config.json'} is not of a pretraining: {error!r}.") from error


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Return the rate of a step: linear warm-up, then the chosen schedule."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.rate == "constant":
        return config.learning_rate * warm
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
