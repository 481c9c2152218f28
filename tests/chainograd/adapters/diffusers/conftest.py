"""The network and the noise of diffusers' chains."""

import pytest
import torch

from tests.chainograd.adapters.diffusers.conformance import Net
from tests.chainograd.adapters.diffusers.guided import SHAPE


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net(SHAPE, 1, 1)


@pytest.fixture
def noise():
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
