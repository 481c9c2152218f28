"""A study of three directions that take no network to draw."""

from dataclasses import dataclass

import pytest
import torch
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.mos.make import make_study


class Model:
    image_shape = (1, 16, 16)


@dataclass
class Discovery:
    """An x_T that is moved by s along k is noise plus k s."""

    config = DiscoveryConfig.of(K=3, S=2.0)
    dm = Model()
    shift_block = torch.nn.Linear(1, 1)

    def shifted(self, x_T, k, s):
        return 0.05 * x_T + 0.2 * (k * s).view(-1, 1, 1, 1)


@pytest.fixture
def make():
    def make_(folder, *, run="<b>run</b>", **options):
        given = {"step": 40, "raters": 3, "examples": 2, "strengths": 5, **options}
        return make_study(Discovery(), folder, run=run, **given)

    return make_
