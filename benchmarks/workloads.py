"""Three samplers to train through: discovery on MNIST, a UNet of diffusers, a small transformer.

Each is a value: its step, the noise it begins with, its loss, and what wants a gradient. Real
tensors or fake ones, whichever mode is on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import (
    DiTTransformer2DModel,  # pyright: ignore[reportPrivateImportUsage]
    UNet2DModel,  # pyright: ignore[reportPrivateImportUsage]
)
from hdiscovery.directions.recipe import from_preset
from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.open import load_dm
from hdiscovery.training.algorithm1 import Objective
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch

from chainograd.samplers import NoiseSchedule

Size = Literal["bench", "tiny"]
SMALLEST = UNetConfig(
    image_size=8, in_channels=1, num_channels=32, channel_mult=(1, 1), num_res_blocks=1
)


@dataclass
class Evaluations:
    """How many steps of the whole batch have run; a slice counts as its part of the batch."""

    count: float = 0.0


@dataclass(eq=False)
class Workload:
    """A chain of M steps, and what is asked of it.

    Attributes:
        name: What it is called in tables.
        M: Number of steps.
        step: ``step(x, i, *args) -> x``.
        x_T: The noise, ``[N, C, H, W]``.
        args: What every step is given besides.
        loss: Of the result.
        wanted: Tensors whose ``.grad`` a run leaves.
        frozen: Whether the network's weights need no gradient.
        kind: Equal for steps that cost the same.
        checkpoint_itself: Turns the model's own gradient checkpointing on or off, if it has one.
        evaluations: Counts what the step is given.
    """

    name: str
    M: int
    step: Callable[..., Tensor]
    x_T: Tensor
    args: tuple[Tensor, ...]
    loss: Callable[[Tensor], Tensor]
    wanted: list[Tensor]
    frozen: bool
    kind: Callable[[int], Hashable] = field(default=lambda i: 0)
    checkpoint_itself: Callable[[bool], None] | None = None
    evaluations: Evaluations = field(default_factory=Evaluations)

    def __post_init__(self) -> None:
        # Not `self` in the closure: a chain takes what it reaches to be part of the step.
        plain, batch, evaluations = self.step, len(self.x_T), self.evaluations

        def counted(x: Tensor, i: int, *args: Tensor) -> Tensor:
            evaluations.count += len(x) / batch
            return plain(x, i, *args)

        self.step = counted

    def forget(self) -> None:
        """Let go of gradients, as before a training step."""
        for tensor in self.wanted:
            tensor.grad = None


def mnist(M: int, batch: int, device: str, size: Size = "bench") -> Workload:
    """Return step 2 of Algorithm 1: trained are the shift block and the reconstructor."""
    reconstructor = "lenet" if size == "bench" else "difference"
    config = from_preset(
        "MNIST32-400-20-32-5", M=M, batch_size=max(batch, 2), head_std=0.1,
        reconstructor=reconstructor,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = RunNetworks.build(config, _mnist_model(device, size), device=device)
        networks.D.requires_grad_(False)
        x_T, k, s = networks.draw(batch)
    with torch.no_grad():
        x_0 = networks.real(x_T)
    objective, step = Objective(networks), networks.shifted.step
    grid: Any = step.grid  # type: ignore[attr-defined]
    return Workload(
        "MNIST discovery", M, step, x_T, (k, s),
        lambda x: objective(x_0, x, k, s)["loss"],
        [*networks.shift_block.parameters(), *networks.R.parameters()],
        frozen=True, kind=lambda i: grid[i] >= config.shift.t_stop,
    )  # fmt: skip


def unet(M: int, batch: int, device: str, size: Size = "bench") -> Workload:
    """Return diffusers' UNet, all of whose weights are trained, as by a reward of the sample."""
    widths, layers = ((32, 64, 64, 128), 2) if size == "bench" else ((32, 32), 1)
    edge = 32 if size == "bench" else 8
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=edge, block_out_channels=widths, layers_per_block=layers,
        down_block_types=("DownBlock2D",) * len(widths),
        up_block_types=("UpBlock2D",) * len(widths),
    ).eval()  # fmt: skip
    _place(net, device)
    x_T = torch.randn(batch, 3, edge, edge, device=device)

    def step(x: Tensor, i: int) -> Tensor:
        return x - net(x, x.new_full((len(x),), 999 - i)).sample / M

    return Workload(
        "UNet, trained", M, step, x_T, (), lambda x: x.square().mean(), list(net.parameters()),
        frozen=False, checkpoint_itself=_switch(net),
    )  # fmt: skip


def dit(M: int, batch: int, device: str, size: Size = "bench") -> Workload:
    """Return diffusers' DiT with frozen weights; the noise that it begins with is improved."""
    heads, width, layers, edge = (6, 32, 6, 16) if size == "bench" else (2, 16, 2, 8)
    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width, in_channels=4, num_layers=layers,
        sample_size=edge, patch_size=2, num_embeds_ada_norm=10,
    ).requires_grad_(False).eval()  # fmt: skip
    _place(net, device)
    x_T = torch.randn(batch, 4, edge, edge, device=device, requires_grad=True)
    labels = torch.randint(10, (batch,), device=device)

    def step(x: Tensor, i: int, labels: Tensor) -> Tensor:
        t = torch.full((len(x),), 999 - i, device=x.device)
        return x - net(x, timestep=t, class_labels=labels).sample / M

    return Workload(
        "DiT, frozen", M, step, x_T, (labels,), lambda x: x.square().mean(), [x_T],
        frozen=True, checkpoint_itself=_switch(net),
    )  # fmt: skip


WORKLOADS: dict[str, Callable[..., Workload]] = {"mnist": mnist, "unet": unet, "dit": dit}


def _mnist_model(device: str, size: Size) -> DiffusionModel:
    with no_dispatch():  # files and schedules hold real numbers, under FakeTensorMode too
        schedule, shipped = NoiseSchedule.linear(), load_dm("MNIST32-small", device=device)
    net = ADMUNet(shipped.config if size == "bench" else SMALLEST).requires_grad_(False).eval()
    _place(net, device)
    if size == "bench":
        net.load_state_dict(shipped.unet.state_dict())
    else:
        for p in net.parameters():  # layers that begin as zero would hide all behind them
            nn.init.normal_(p, std=0.05)
    return DiffusionModel(net, schedule, "MNIST32")


def _place(net: nn.Module, device: str) -> None:
    if torch.device(device).type != "cpu":  # fakes, which are there, cannot be moved
        nn.Module.to(net, device)  # diffusers' own `to` hides its signature


def _switch(net: Any) -> Callable[[bool], None]:
    def checkpoint_itself(on: bool) -> None:
        (net.enable_gradient_checkpointing if on else net.disable_gradient_checkpointing)()

    return checkpoint_itself
