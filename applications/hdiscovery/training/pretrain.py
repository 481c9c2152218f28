"""Pre-train a diffusion model: noise prediction on images, an average of the weights as result."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from chainograd.samplers import NoiseSchedule
from hdiscovery.data.mnist import load_mnist
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_state import load_state
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.autocast import Autocast, autocast
from hdiscovery.dm.device import device_of
from hdiscovery.dm.files import save_dm
from hdiscovery.dm.open import load_dm
from hdiscovery.dm.walk import sample

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
        out: Run folder; the weights end up in ``OUT/dm.safetensors``.
        data: Folder that holds torchvision's ``MNIST/raw``; downloaded if it is not there.
        unet: Architecture; the default is that of the shipped DM.
        init: Weights to start from, a file or the name of a shipped DM, of the same architecture;
            without it they are drawn from ``seed``.
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Peak rate of Adam, after ``warmup_steps``.
        warmup_steps: Steps over which the rate rises from 0.
        rate: ``"cosine"`` falls to 0 at the last step, ``"constant"`` stays.
        ema_decay: Decay of the average of the weights, the result; shorter at the start.
        autocast: ``"bf16"`` runs the UNet under bfloat16 autocast.
        sample_every: Steps between sample sheets ``OUT/samples-STEP.png``; 0 for none.
        save_every: Steps between checkpoints.
        seed: Of weights, batches and noise.
        device: Where to train.
        resume: Continue the run in ``out``.
    """

    out: Path
    data: Path = Path("data")
    unet: UNetConfig = field(default_factory=lambda: SMALL_MNIST)
    init: str | None = None
    steps: int = 10_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    rate: Literal["cosine", "constant"] = "cosine"
    ema_decay: float = 0.999
    autocast: Autocast = "off"
    sample_every: int = 1000
    save_every: int = 250
    seed: int = 0
    device: str = "cpu"
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "save_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie in [0, 1), got {self.ema_decay}.")


def pretrain(config: PretrainConfig) -> Iterator[dict[str, Any]]:
    """Train, yielding one record per step; the last one is followed by the finished file.

    Raises:
        FileExistsError: If ``config.out`` holds a run and ``config.resume`` is not set.
        FloatingPointError: If the loss is not finite; the last checkpoint is kept.
    """
    settings = json.loads(json.dumps(_jsonable(asdict(config))))
    run = RunFolder.open(config.out) if config.resume else RunFolder.create(config.out, settings)
    if config.resume:
        for name in ("unet", "init", "seed"):
            if settings[name] != run.read_json("config.json")[name]:
                raise ValueError(
                    f"`{name}` of a run cannot change on its way. Start a new one in another "
                    "folder."
                )
        run.write_json("config.json", settings)
    device = device_of(config.device)
    images, _ = load_mnist(config.data, image_size=config.unet.image_size)
    torch.manual_seed(config.seed)
    unet = ADMUNet(config.unet).to(device)
    if config.init is not None:
        load_state(unet, load_dm(config.init, device=device).unet.state_dict(), config.init)
    average = copy.deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.Adam(unet.parameters(), lr=config.learning_rate)
    schedule = NoiseSchedule.linear()
    first = _restore(run, unet, average, optimizer) if config.resume else 0

    for step in range(first, config.steps):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        x_0 = _batch(images, config, step).to(device)
        optimizer.zero_grad()
        with autocast(config.autocast, device):
            loss = noise_prediction_loss(unet, schedule, x_0)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {step}. The last good checkpoint is kept: "
                "resume with a lower `--learning-rate`."
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        _update_average(average, unet, min(config.ema_decay, (1 + step) / (10 + step)))
        done = step + 1
        record = {"step": step, "loss": loss.item(), "seconds": time.perf_counter() - started}
        run.append_record(record)
        if done % config.save_every == 0 or done == config.steps:
            _save(run, unet, average, optimizer, done)
        if config.sample_every and done % config.sample_every == 0:
            draw_samples(average, schedule, run.path / f"samples-{done:06d}.png")
        yield record
    save_dm(run.path / "dm.safetensors", average, data="MNIST", training=settings)


def begun(out: Path) -> PretrainConfig:
    """Return the config that a run in a folder was begun with.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is none of this version's.
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


def noise_prediction_loss(unet: ADMUNet, schedule: NoiseSchedule, x_0: Tensor) -> Tensor:
    """Return E |epsilon - epsilon_theta(x_t, t)|^2 over a batch.

    The times of a batch are stratified over 0 … T-1 (one in each of N equal intervals), which
    leaves the expectation as it is and takes most of the variance from the choice of t.
    """
    N, T = len(x_0), schedule.num_train_steps
    u = (torch.arange(N) + torch.rand(N)) / N
    t = (u * T).long().clamp(max=T - 1)[torch.randperm(N)].to(x_0.device)
    epsilon = torch.randn_like(x_0)
    predicted = unet(schedule.noise(x_0, t, epsilon), t)[:, : x_0.shape[1]]
    return F.mse_loss(predicted.float(), epsilon)


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Return the rate of a step: linear warm-up, then the chosen schedule."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.rate == "constant":
        return config.learning_rate * warm
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def draw_samples(unet: ADMUNet, schedule: NoiseSchedule, path: Path, *, count: int = 64) -> None:
    """Write a sheet of samples from 20 DDIM steps, always from the same noise."""
    from torchvision.utils import save_image

    x = sample(unet, schedule, count)
    save_image(x.clamp(-1, 1), path, nrow=8, normalize=True, value_range=(-1, 1))


def _batch(images: Tensor, config: PretrainConfig, step: int) -> Tensor:
    """Return the images of a step: each epoch is a permutation of its own, by its number."""
    per_epoch = max(len(images) // config.batch_size, 1)
    epoch, position = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(len(images), generator=generator)
    return images[order[position * config.batch_size :][: config.batch_size]]


def _update_average(average: ADMUNet, unet: ADMUNet, decay: float) -> None:
    with torch.no_grad():
        for mean, new in zip(average.parameters(), unet.parameters(), strict=True):
            mean.lerp_(new, 1 - decay)


def _save(
    run: RunFolder, unet: ADMUNet, average: ADMUNet, optimizer: torch.optim.Adam, step: int
) -> None:
    run.save_checkpoint(
        {
            "step": step,
            "unet": unet.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
    )


def _restore(run: RunFolder, unet: ADMUNet, average: ADMUNet, optimizer: torch.optim.Adam) -> int:
    state = run.load_checkpoint()
    if state is None:
        run.keep_records(before=0)
        return 0
    unet.load_state_dict(state["unet"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    run.keep_records(before=state["step"])
    return state["step"]


def _jsonable(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, Path) else value for key, value in settings.items()
    }
