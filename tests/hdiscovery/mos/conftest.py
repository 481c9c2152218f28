"""A study of three directions that take no network to draw."""

from dataclasses import dataclass

import pytest
import torch
from hdiscovery.mos.make import make_study


class Model:
    image_shape = (1, 16, 16)


@dataclass
class Directions:
    """An x_T that is moved by s along k is noise plus k s."""

    name: str
    K, S, dm, device, trained_steps = 3, 2.0, Model(), torch.device("cpu"), 40

    def shifted(self, x_T, k, s):
        return 0.05 * x_T + 0.2 * (k * s).view(-1, 1, 1, 1)


@pytest.fixture
def make():
    def make_(folder, *, run="<b>run</b>", **options):
        given = {"raters": 3, "examples": 2, "strengths": 5, **options}
        return make_study(Directions(run), folder, **given)

    return make_
