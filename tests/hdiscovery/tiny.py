"""Tiny networks, their discovery, and what a run of them has trained."""

import torch
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.model import DiffusionModel

from chainograd.samplers import NoiseSchedule

TINY = UNetConfig(
    image_size=8, in_channels=1, num_channels=32, channel_mult=(1, 1), num_res_blocks=1
)
CONFIG = DiscoveryConfig.of(
    K=3, S=2.0, M=4, t_stop=400, batch_size=4, steps=2, head_std=0.1, reconstructor="difference"
)


def tiny(dtype=torch.float64, **changes):
    torch.manual_seed(1)
    unet = ADMUNet(TINY)
    for p in unet.parameters():  # zero-initialised layers would hide everything behind them
        torch.nn.init.normal_(p, std=0.05)
    unet.requires_grad_(False).eval().to(dtype)
    dm = DiffusionModel(unet, NoiseSchedule.linear(), "tiny")
    d = RunNetworks.build(CONFIG.replace(**changes), dm)
    for net in (d.shift_block, d.R, d.D):
        net.to(dtype)
    torch.nn.init.normal_(d.D.out[3].weight, std=0.1)
    return d


def draw(d, n=4):
    x_T, k, s = d.draw(n)
    return x_T.double(), k, s.double()


def weights(run):
    """Return every tensor of a run's last checkpoint, by its place."""
    leaves = {}

    def collect(thing, place):
        if isinstance(thing, torch.Tensor):
            leaves[place] = thing
        elif isinstance(thing, (dict, list, tuple)):
            items = thing.items() if isinstance(thing, dict) else enumerate(thing)
            for key, value in items:
                collect(value, f"{place}/{key}")

    collect(run.load_checkpoint(), "")
    return leaves


def assert_same(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert len(a) > 50
    for place in a:
        assert torch.equal(a[place], b[place]), place
