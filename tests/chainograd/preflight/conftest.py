"""The network of the preflight's tests."""

import pytest
import torch

from tests.problems import Net


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net(8, torch.float32)
