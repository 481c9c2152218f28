"""Toy networks whose samplers are known in closed form, and a tiny run."""

import math

import pytest
import torch
from hdiscovery.directions.about import About
from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.directions.fingerprint import dm_hash
from hdiscovery.directions.sampler import Sampler
from hdiscovery.dm.hspace import Encoded, HSpaceUNet
from hdiscovery.dm.model import DiffusionModel

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
        whole = About(K=K, M=M, t_stop=t_stop, times=times, **{**known, **about})
        sampler = Sampler(M=M, t_stop=t_stop, convention=whole.grid, update=whole.update)
        return DirectionSet(
            name="toy", kind="direct", dm=dm, f=directions, K=K, S=whole.S, sampler=sampler,
            known=lambda: whole,
        )  # fmt: skip

    return build
