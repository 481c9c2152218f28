"""Toy networks whose samplers are known in closed form, and a tiny run."""

import math

import pytest
import torch
from hdiscovery.cli import main
from hdiscovery.editing.about import About
from hdiscovery.editing.fingerprint import dm_hash
from hdiscovery.editing.source import Source
from hdiscovery.models.adm_unet import ADMUNet, UNetConfig
from hdiscovery.models.dm import DiffusionModel, save_dm
from hdiscovery.models.hspace import Encoded, HSpaceUNet

from chainograd.samplers import NoiseSchedule, time_grid

SCHEDULE = NoiseSchedule.linear()


class Toy(HSpaceUNet):
    """h is x itself; what the noise is made of h is told by a function of h and t."""

    image_shape = h_shape = (1, 2, 2)
    embedding_channels = 1

    def __init__(self, noise):
        super().__init__()
        self.noise = noise
        self.weight = torch.nn.Parameter(torch.ones(1))

    def encode(self, x, t, y=None):
        return Encoded(x, (), t[:, None].double())

    def middle(self, encoded):
        return encoded.features

    def decode(self, h, encoded):
        return self.noise(h, int(encoded.embedding[0, 0]))


@pytest.fixture
def toy():
    return lambda noise: DiffusionModel(Toy(noise), SCHEDULE, "toy")


@pytest.fixture
def gaussian(toy):
    """The perfect network of data N(mu, v), and what its x_T is in the limit of many steps."""
    mu, v = 0.3, 0.2

    def noise(x, t):
        a = SCHEDULE.alpha_bar(t)
        return math.sqrt(1 - a) * (x - math.sqrt(a) * mu) / (a * v + 1 - a)

    def flow(x_0):
        a = SCHEDULE.alpha_bar(999)
        return math.sqrt(a) * mu + math.sqrt((a * v + 1 - a) / v) * (x_0 - mu)

    return toy(noise), flow


@pytest.fixture
def source_of():
    """Return what makes a source of any directions in any model."""

    def build(dm, directions, *, K=2, M=4, t_stop=400, **about):
        times = tuple(t for t in time_grid(M)[:-1] if t >= t_stop)
        known = {
            "dm": dm.name, "dm_hash": dm_hash(dm), "shift_block_hash": "0", "S": 2.0,
            "grid": "asyrp", "update": "asymmetric", "labels": ("",) * K, "scores": (None,) * K,
        }  # fmt: skip
        return Source(
            dm,
            directions,
            About(K=K, M=M, t_stop=t_stop, times=times, **{**known, **about}),
            "direct",
        )

    return build


@pytest.fixture(scope="session")
def tiny_dm(tmp_path_factory):
    """A file of a tiny ADM network."""
    torch.manual_seed(1)
    unet = ADMUNet(UNetConfig(image_size=8, in_channels=1, num_channels=32, channel_mult=(1, 1),
                              num_res_blocks=1))  # fmt: skip
    for p in unet.parameters():  # zero-initialised layers would hide everything behind them
        torch.nn.init.normal_(p, std=0.05)
    path = tmp_path_factory.mktemp("dm") / "tiny.safetensors"
    save_dm(path, unet)
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_dm):
    """A run of one step, with a file of its directions."""
    run = tmp_path_factory.mktemp("run") / "run"
    words = (
        "train", "MNIST32-demo", "--out", run, "--dm", tiny_dm, "--K", 3, "--M", 4, "--S", 2,
        "--steps", 1, "--batch-size", 4, "--r-updates", 1,
    )  # fmt: skip
    assert main([str(word) for word in words]) == 0
    assert main(["directions", str(run), "--samples", "2", "--calibration-samples", "1"]) == 0
    return run
