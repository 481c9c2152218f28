"""A tiny diffusion model, and toy subjects whose measures can be worked out by hand."""

from dataclasses import replace

import pytest
import torch
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.discovery import Discovery
from hdiscovery.directions.subject import of_run
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


@pytest.fixture(scope="session")
def discovery():
    torch.manual_seed(1)
    unet = ADMUNet(TINY)
    for p in unet.parameters():  # zero-initialised layers would hide everything behind them
        nn.init.normal_(p, std=0.05)
    unet.requires_grad_(False).eval()
    return Discovery.build(CONFIG, DiffusionModel(unet, NoiseSchedule.linear(), "tiny"))


@pytest.fixture(scope="session")
def toy(discovery):
    """Return a maker of subjects that add ``s * patterns[k]`` to x_0 = x_T / 4."""

    def make(patterns, **changes):
        def shifted(x_T, k, s):
            return x_T / 4 + s[:, None, None, None] * patterns[k]

        def draw(n):
            k = torch.randint(len(patterns), (n,))
            return torch.randn(n, 1, 8, 8), k, (2 * torch.rand(n) - 1) * 2.0

        K = len(patterns)
        made = replace(
            of_run(discovery), name="toy", K=K, real=lambda x_T: x_T / 4, shifted=shifted,
            draw=draw, R=Reads(patterns),
        )  # fmt: skip
        return replace(made, **changes)

    return make


@pytest.fixture(scope="session")
def patterns():
    """Return three orthonormal images."""
    images = torch.zeros(3, 1, 8, 8)
    images[0, :, :4, :4] = images[1, :, 4:, :4] = images[2, :, 4:, 4:] = 0.25
    return images
