"""What the paper's models need: peak bytes of a training step at full size, on which GPU.

Run it as it stands: ``python benchmarks/paper_scale.py``. With ``--device fake``, the default, the
whole step runs under ``FakeTensorMode``: shapes are real, numbers are not, and the peak is that of
live tensors, weights, gradients and Adam's moments included. What CUDA keeps for itself and the
workspaces of its libraries come on top. ``--device cuda`` runs it, and reads the allocator.

ChatFace's setting is a UNet of the size of Diff-AE's for 256 pixels with frozen weights, and a
network of four layers that shifts its embedding; its loss, a CLIP network, is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hdiscovery.directions.recipe import from_preset
from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.dm.adm_config import TABLE_3, UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.training.trainer import Trainer
from hdiscovery.training.world import World
from measured import each_apart, results, save
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._mode_utils import no_dispatch

from chainograd import CheckpointedChain, meter
from chainograd.samplers import DDIM, NoiseSchedule, time_grid

Run = Callable[[], None]
GPUS = (24, 40, 80)  # GiB
WAYS: dict[str, dict[str, Any]] = {
    "plain loop": {"plan": "graph", "frozen": "off"},
    "nodes": {"frozen": "off"},
    "nodes, frozen": {"frozen": "auto"},
}
SHOWN = ("plain loop", "nodes, frozen")  # at full size, where readings take long


class Unread(World):
    """A process that does not look at its losses: fakes have no numbers."""

    def average(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Return zeros."""
        return dict.fromkeys(values, 0.0)


@dataclass(frozen=True)
class Setting:
    """A model, as it was trained.

    Attributes:
        model: Of Table 3.
        preset: The rest.
        batch: Samples on one GPU.
    """

    model: str
    preset: str
    batch: int


SETTINGS = {
    "Figure 4": Setting("MNIST32", "MNIST32-400-20-32-5", 32),  # on 4 GPUs
    "MNIST32": Setting("MNIST32", "MNIST32-400-20-32-5", 16),  # on 8, as are those below
    "Anime64": Setting("Anime64", "Anime64-400-40-128-2", 16),
    "CelebAHQ128": Setting("CelebAHQ128", "CelebAHQ128-500-40-256-2", 8),
    "AFHQ128": Setting("AFHQ128", "AFHQ128-400-40-256-2", 8),
}
CHATFACE, CHATFACE_M = "ChatFace", 8
DIFF_AE = UNetConfig(
    image_size=256, num_channels=128, channel_mult=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,)
)


def discovery_step(setting: Setting, M: int, device: str, **options: Any) -> tuple[Run, Run]:
    """Return a step of Algorithm 1, the optimizers' included, and one whose sampler has one."""
    with no_dispatch():  # a schedule holds real numbers
        schedule = NoiseSchedule.linear()
    config = from_preset(setting.preset, dm=setting.model, M=M, **options)
    unet = moved(ADMUNet(TABLE_3[setting.model]), device).requires_grad_(False).eval()
    dm = DiffusionModel(unet, schedule, setting.model)
    networks = RunNetworks.build(config, dm, device=device)
    trainer = Trainer(networks, Unread(device=torch.device(device)))
    for each in trainer.optimizers.values():  # others ask a fake count of steps for its value
        for group in each.param_groups:
            group["fused"], group["foreach"] = True, False

    first = replace(
        networks,
        real=CheckpointedChain(networks.real.step, 1),
        shifted=CheckpointedChain(networks.shifted.step, 1),
    )

    def run(sampler: RunNetworks) -> None:
        trainer.algorithm.networks = sampler
        trainer.step(*networks.draw(setting.batch))

    return partial(run, networks), partial(run, first)


def chatface_step(M: int, device: str, **options: Any) -> tuple[Run, Run]:
    """Return a step of training four layers through a sampler of 256 pixels; and of one step."""
    with no_dispatch():
        schedule = NoiseSchedule.linear()
    unet = moved(ADMUNet(DIFF_AE), device).requires_grad_(False).eval()
    width = unet.embedding_channels
    layers = [m for _ in range(4) for m in (nn.Linear(width, width), nn.SiLU())]
    mlp = moved(nn.Sequential(*layers[:-1]), device)
    x_T = torch.randn(1, *unet.image_shape, device=device)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        encoded = unet.encode(x, t)
        shifted = encoded._replace(embedding=encoded.embedding + mlp(encoded.embedding))
        return unet.decode(unet.middle(shifted), shifted)

    step = DDIM(predict, schedule, time_grid(M))

    def run(chain: CheckpointedChain) -> None:
        mlp.zero_grad()
        chain(x_T).square().mean().backward()

    whole, first = CheckpointedChain(step, M, **options), CheckpointedChain(step, 1)
    return partial(run, whole), partial(run, first)


def moved(net: nn.Module, device: str) -> Any:
    """Return a network on its device; fakes, which are there, cannot be moved."""
    return net if torch.device(device).type == "cpu" else net.to(device)


def peak(name: str, way: str, M: int, batch: int, device: str) -> int:
    """Return the peak bytes of a step after a first one, weights and all included."""
    place = "cpu" if device == "fake" else device
    with FakeTensorMode() if device == "fake" else nullcontext(), meter(place) as reading:
        if name == CHATFACE:
            run, first = chatface_step(M, place, **WAYS[way])
        else:
            setting = replace(SETTINGS[name], batch=batch)
            run, first = discovery_step(setting, M, place, **WAYS[way])
        first()  # gradients and moments are there afterwards
        reading.lap()
        run()
    return reading.peak_bytes


def shifted_share(M: int, t_stop: int) -> float:
    """Return which part of a grid's steps is shifted: those are the larger ones."""
    return sum(t >= t_stop for t in time_grid(M)[:-1]) / M


def at(name: str, way: str, M: int, batch: int, device: str) -> dict[str, Any]:
    """Return the peak at M: nodes and graphs are added by each step, so that two M tell the third.

    The two have the same share of shifted steps, and are 5 or more: the nodes of CelebAHQ128 need
    less at 4 than the line through all others says. On a real device M itself is run.
    """
    row = {"setting": name, "way": way, "M": M, "batch": batch}
    if device != "fake":
        return {**row, "peak_bytes": peak(name, way, M, batch, device)}
    t_stop = 0 if name == CHATFACE else from_preset(SETTINGS[name].preset, dm="x").shift.t_stop
    alike = [m for m in range(5, M + 1) if shifted_share(m, t_stop) == shifted_share(M, t_stop)]
    few, more = alike[0], alike[min(1, len(alike) - 1)]
    first = peak(name, way, few, batch, device)
    if few == M:
        return {**row, "peak_bytes": first}
    grown = peak(name, way, more, batch, device) - first
    return {**row, "peak_bytes": first + grown * (M - few) // (more - few)}


def measure(device: str, M: int | None = None, batch: int | None = None) -> list[dict[str, Any]]:
    """Return the peaks of all settings and ways, a process each."""
    jobs = []
    for name in (*SETTINGS, CHATFACE):
        if name == CHATFACE:
            steps, samples = M or CHATFACE_M, 1
        else:
            steps = M or from_preset(SETTINGS[name].preset, dm="x").sampling.M
            samples = batch or SETTINGS[name].batch
        jobs += [(name, way, steps, samples, device) for way in SHOWN]
    return each_apart(at, jobs, device)


def compared() -> list[dict[str, Any]]:
    """Return peaks on fake tensors and on real ones, where a real run is possible here."""
    jobs = [("MNIST32", way, 2, 2, device) for way in WAYS for device in ("fake", "cpu")]
    peaks = each_apart(peak, jobs, "cpu")
    return [
        {"way": way, "M": 2, "batch": 2, "peak_bytes": real, "fake_bytes": fake}
        for way, fake, real in zip(WAYS, peaks[::2], peaks[1::2], strict=True)
    ]


def gpu_for(peak_bytes: int) -> str:
    """Return the smallest GPU that holds so much."""
    fitting = [f"{size} GB" for size in GPUS if peak_bytes <= size * 2**30]
    return fitting[0] if fitting else f"more than {GPUS[-1]} GB"


def table(content: dict[str, Any]) -> str:
    """Return two Markdown tables: what each setting needs, and fakes against real tensors."""
    lines = ["| model | batch a GPU | M | way | GiB | GPU |", "|---|---:|---:|---|---:|---|"]
    for row in content["settings"]:
        lines.append(
            f"| {row['setting']} | {row['batch']} | {row['M']} | {row['way']} "
            f"| {row['peak_bytes'] / 2**30:.2f} | {gpu_for(row['peak_bytes'])} |"
        )
    if content["compared"]:
        lines += ["", "| MNIST32 | batch | M | real MiB | fake : real |", "|---|" + "---:|" * 4]
    for row in content["compared"]:
        lines.append(
            f"| {row['way']} | {row['batch']} | {row['M']} | {row['peak_bytes'] / 2**20:.1f} "
            f"| {row['fake_bytes'] / row['peak_bytes']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="fake", help="fake (default), or one to run on")
    parser.add_argument("--M", type=int, help="another number of steps than the paper's")
    parser.add_argument("--batch", type=int, help="another batch than the paper's")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or results("paper_scale", options.device)
    rows = measure(options.device, options.M, options.batch)
    agree = compared() if options.device == "fake" else []
    content = save(out, options.device, {"settings": rows, "compared": agree})
    print(table(content))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
