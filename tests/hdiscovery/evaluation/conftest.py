"""A tiny diffusion model, and toy subjects whose measures can be worked out by hand."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.open import directions_of
from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.directions.sampler import Sampler
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.model import DiffusionModel
from torch import nn

from chainograd.samplers import NoiseSchedule

TINY = UNetConfig(
    image_size=8, in_channels=1, num_channels=32, channel_mult=(1, 1), num_res_blocks=1
)
CONFIG = DiscoveryConfig.of(
    K=3, S=2.0, M=4, t_stop=400, batch_size=4, steps=2, head_std=0.1, reconstructor="difference"
)


class Reads(nn.Module):
    """Knows patterns: which of them was added to x_0, and how often."""

    def __init__(self, patterns):
        super().__init__()
        self.register_buffer("patterns", patterns.flatten(1))

    def forward(self, x_0, shifted):
        amounts = (shifted - x_0).flatten(1) @ self.patterns.T
        k = amounts.abs().argmax(1, keepdim=True)
        return amounts.abs(), amounts.gather(1, k)[:, 0]


@dataclass(frozen=True, kw_only=True, eq=False)
class PatternSampler(Sampler):
    """Makes x_0 = x_T / 4, and adds ``s * patterns[k]`` to it."""

    patterns: torch.Tensor
    seen: Callable[[int], object] = int  # called with the number of samples that are shifted

    def real(self, dm):
        return lambda x_T: x_T / 4

    def shifted(self, dm, f):
        def chain(x_T, k, s):
            self.seen(len(x_T))
            return x_T / 4 + s[:, None, None, None] * self.patterns[k]

        return chain


@pytest.fixture(scope="session")
def networks():
    torch.manual_seed(1)
    unet = ADMUNet(TINY)
    for p in unet.parameters():  # zero-initialised layers would hide everything behind them
        nn.init.normal_(p, std=0.05)
    unet.requires_grad_(False).eval()
    return RunNetworks.build(CONFIG, DiffusionModel(unet, NoiseSchedule.linear(), "tiny"))


@pytest.fixture(scope="session")
def toy(networks):
    """Return a maker of direction sets that add ``s * patterns[k]`` to x_0 = x_T / 4."""

    def make(patterns, *, t_stop=400, **changes):
        made = replace(
            directions_of(networks), name="toy", K=len(patterns), R=Reads(patterns),
            sampler=PatternSampler(M=4, t_stop=t_stop, patterns=patterns),
        )  # fmt: skip
        return replace(made, **changes)

    return make


@pytest.fixture(scope="session")
def patterns():
    """Return three orthonormal images."""
    images = torch.zeros(3, 1, 8, 8)
    images[0, :, :4, :4] = images[1, :, 4:, :4] = images[2, :, 4:, 4:] = 0.25
    return images
