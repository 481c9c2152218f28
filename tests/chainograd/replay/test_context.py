"""A rerun sees the context of the first run, whatever is in force around the backward pass."""

import contextlib

import pytest
import torch

from chainograd import CheckpointedChain
from chainograd.replay.settings import Settings, settings_as
from chainograd.tensors.digest import digest

M = 3


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("default", [torch.device, default_device], ids=["block", "function"])
@pytest.mark.parametrize("around", ["forward", "backward"])
def test_a_rerun_makes_tensors_on_the_default_device_of_the_first_run(around, default):
    w, devices = torch.ones(3, requires_grad=True), []

    def step(x, i):
        devices.append(torch.empty(1).device.type)
        return torch.sin(w * x)

    x = torch.ones(3)
    with default("meta") if around == "forward" else contextlib.nullcontext():
        y = CheckpointedChain(step, M)(x)
    with default("meta") if around == "backward" else contextlib.nullcontext():
        y.sum().backward()

    assert devices == ["meta" if around == "forward" else "cpu"] * (2 * M - 1)


def test_a_digest_does_not_depend_on_the_default_device():
    x = torch.arange(70_000.0)
    expected = digest([x])
    with torch.device("meta"):
        assert digest([x]) == expected


def test_settings_are_put_in_force_for_a_block():
    before = Settings.now()
    torch.set_default_dtype(torch.float64)
    try:
        with settings_as(before):
            assert torch.get_default_dtype() is torch.float32
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert Settings.now() == before
