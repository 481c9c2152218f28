"""Tensors that TorchScript modules hold in C++."""

import types

import pytest
import torch
from torch import nn

from chainograd import CheckpointedChain
from chainograd.captured.find import find_captured
from tests.chainograd.captured.held import (
    PLANS,
    M,
    around,
    assert_gradients_reach,
    layers,
    loaded,
    register,
    weight,
)
from tests.problems import plain

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")  # is deprecated, says torch
CASES = {}
case = register(CASES)


@case
def a_traced_module():
    return around(torch.jit.trace(layers(), torch.randn(4, 8)))


@case
def a_scripted_module():
    return around(torch.jit.script(layers()))


@case
def a_loaded_module():
    return around(loaded(torch.jit.script(layers())))


@case
def a_loaded_traced_module():
    return around(loaded(torch.jit.trace(layers(), torch.randn(4, 8))))


@case
def a_loaded_module_inside_a_module():
    return around(nn.Sequential(loaded(torch.jit.script(layers())), nn.Tanh()))


@case
def a_loaded_module_in_a_list_of_an_object():
    held = types.SimpleNamespace(nets=[loaded(torch.jit.script(layers()))])
    return (lambda x, i: held.nets[0](x)), list(held.nets[0].parameters())


@case
def a_method_of_a_loaded_module():
    net = loaded(torch.jit.script(layers()))
    forward = net.forward
    return (lambda x, i: forward(x)), list(net.parameters())


class Scripted(nn.Module):
    """Holds tensors that are neither parameters nor buffers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.w = weight()
        self.more = [weight(), weight()]

    def forward(self, x):
        return torch.tanh(self.layer(x) * self.w + self.more[0] * self.more[1])


@case
def plain_tensors_of_a_loaded_module():
    net = loaded(torch.jit.script(Scripted()))
    return (lambda x, i: net(x)), [*net.parameters(), net.w, *net.more]


@case
def a_scripted_function_on_parameters():
    w = weight()
    f = torch.jit.script(_scaled)
    return (lambda x, i: f(x, w)), [w]


def _scaled(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x * w)


@pytest.mark.parametrize("known", [True, False], ids=["from x", "not from x"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_what_a_torchscript_module_holds(name, known):
    assert_gradients_reach(CASES[name], known)


def test_a_traced_function_cannot_hold_what_requires_a_gradient():
    w = weight()

    with pytest.raises(RuntimeError, match="Cannot insert a Tensor that requires grad"):
        torch.jit.trace(lambda x: w * x, torch.ones(8))


def test_a_frozen_torchscript_module_has_nothing_left_to_train():
    step = torch.jit.freeze(torch.jit.script(layers().eval()))

    assert find_captured(lambda x, i: step(x)).tensors == []
    x = torch.randn(4, 8, requires_grad=True)
    for _ in range(3):
        expected = torch.autograd.grad(plain(lambda x, i: step(x), M, x).sum(), x)
    got = torch.autograd.grad(CheckpointedChain(lambda x, i: step(x), M)(x).sum(), x)
    assert torch.equal(*got, *expected)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_statistics_of_a_torchscript_module_count_each_step_once(plan):
    def statistics(run):
        torch.manual_seed(0)
        net = loaded(torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).train()))
        run(lambda x, i: net(x))(torch.randn(4, 8)).square().sum().backward()
        return [*net.buffers(), *(p.grad for p in net.parameters())]

    expected = statistics(lambda step: lambda x: plain(step, M, x))
    got = statistics(lambda step: CheckpointedChain(step, M, plan=plan))

    assert int(expected[2]) == M
    for g, e in zip(got, expected, strict=True):  # a scripted loop is not itself at first
        torch.testing.assert_close(g, e)


def test_a_torchscript_module_runs_again_in_the_mode_it_was_in():
    net = loaded(torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).train()))
    loss = CheckpointedChain(lambda x, i: net(x), M)(torch.ones(4, 8)).sum()
    net.eval()
    loss.backward()

    assert [part.training for part in net.modules()] == [False] * 3
