"""Pre-train a diffusion model: noise prediction on images, an average of the weights as result."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chainograd.samplers import NoiseSchedule
from hdiscovery.data.mnist import load_mnist
from hdiscovery.directions.history import stamp
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.adm_state import load_state
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.autocast import autocast
from hdiscovery.dm.device import device_of
from hdiscovery.dm.files import save_dm
from hdiscovery.dm.open import load_dm
from hdiscovery.dm.walk import sample
from hdiscovery.training.pretrain_config import PretrainConfig, as_json, learning_rate

FIXED = ("unet", "init", "seed")  # fields that a run cannot change on its way


def pretrain(config: PretrainConfig) -> Iterator[dict[str, Any]]:
    """Train, yielding one record per step; the last one is followed by the finished file.

    Raises:
        FileExistsError: If ``config.out`` holds a run and ``config.resume`` is not set.
        FloatingPointError: If the loss is not finite; the last checkpoint is kept.
        ValueError: If a run that is resumed would change what cannot change.
    """
    run = open_folder(config)
    images, _ = load_mnist(config.data, image_size=config.unet.image_size)
    training = Pretraining(config)
    first = training.restore(run) if config.resume else 0
    enter(run, config, first)
    for step in range(first, config.steps):
        started, done = time.perf_counter(), step + 1
        loss = training.step(batch_of(images, config, step), step)
        record = {"step": step, "loss": loss, "seconds": time.perf_counter() - started}
        run.append_record(record)
        if done % config.save_every == 0 or done == config.steps:
            run.save_checkpoint(training.state(done))
        if config.sample_every and done % config.sample_every == 0:
            draw_samples(training.average, training.schedule, run.path / f"samples-{done:06d}.png")
        yield record
    path = run.path / "dm.safetensors"
    save_dm(path, training.average, data="MNIST", training=as_json(config))


class Pretraining:
    """A network in training, the moving average of its weights, and its optimizer."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config, self.device = config, device_of(config.device)
        torch.manual_seed(config.seed)
        self.unet = ADMUNet(config.unet).to(self.device)
        if config.init is not None:
            weights = load_dm(config.init, device=self.device).unet.state_dict()
            load_state(self.unet, weights, config.init)
        self.average = copy.deepcopy(self.unet).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.unet.parameters(), lr=config.learning_rate)
        self.schedule = NoiseSchedule.linear()

    def step(self, x_0: Tensor, step: int) -> float:
        """Do a step on a batch and return its loss.

        Raises:
            FloatingPointError: If the loss is not finite; nothing has changed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        self.optimizer.zero_grad()
        with autocast(self.config.autocast, self.device):
            loss = noise_prediction_loss(self.unet, self.schedule, x_0.to(self.device))
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {step}. The last good checkpoint is kept: "
                "resume with a lower `--learning-rate`."
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        _update_average(self.average, self.unet, decay)
        return loss.item()

    def state(self, step: int) -> dict[str, Any]:
        """Return everything a resumed run needs."""
        return {"step": step, "unet": self.unet.state_dict(), "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state()}  # fmt: skip

    def restore(self, run: RunFolder) -> int:
        """Load a run's last checkpoint, if it has one; return the next step."""
        state = run.load_checkpoint()
        first = state["step"] if state else 0
        if state:
            self.unet.load_state_dict(state["unet"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
        run.keep_records(before=first)
        return first


def open_folder(config: PretrainConfig) -> RunFolder:
    """Return a new run folder, or the folder of the run that is resumed.

    Raises:
        FileExistsError: If there is a run that is not resumed.
        ValueError: If the run would change what cannot change.
    """
    settings = as_json(config)
    if not config.resume:
        return RunFolder.create(config.out, settings)
    run = RunFolder.open(config.out)
    before = run.read_json("config.json")
    for name in FIXED:
        if settings[name] != before[name]:
            raise ValueError(
                f"`{name}` of a run cannot change on its way (it is {before[name]!r}). Start a "
                "new run in another folder."
            )
    return run


def enter(run: RunFolder, config: PretrainConfig, step: int) -> None:
    """Append the start to the run's history, then keep the config if it changed."""
    before, now = run.read_json("config.json"), as_json(config)
    changed = {name: [before.get(name), now[name]] for name in now if before.get(name) != now[name]}
    said = {"changed": changed} if run.history() else {"config": now}
    run.append_history({**stamp("resumed" if config.resume else "begun"), "step": step, **said})
    if changed:
        run.write_json("config.json", now)


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


def draw_samples(unet: ADMUNet, schedule: NoiseSchedule, path: Path, *, count: int = 64) -> None:
    """Write a sheet of samples from 20 DDIM steps, always from the same noise."""
    from torchvision.utils import save_image

    x = sample(unet, schedule, count)
    save_image(x.clamp(-1, 1), path, nrow=8, normalize=True, value_range=(-1, 1))


def batch_of(images: Tensor, config: PretrainConfig, step: int) -> Tensor:
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
