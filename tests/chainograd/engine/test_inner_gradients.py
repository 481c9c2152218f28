"""Steps that take a gradient of their own, inside: the plain loop's result, or a refusal."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from chainograd import ChainError, CheckpointedChain, meter
from tests.problems import M, every_plan, leaf, plain


def guided(net, w):
    def step(x, i):
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(net(y).square().sum(), y)
        return x + w * g

    return step


def test_a_step_may_take_gradients_for_itself_where_nothing_is_trained():
    net = torch.nn.Linear(3, 1).requires_grad_(False)
    step, x = guided(net, torch.tensor(0.1)), torch.ones(2, 3)

    y = CheckpointedChain(step, M)(x)

    assert not y.requires_grad
    assert torch.equal(y, plain(step, M, x))


@every_plan
def test_a_gradient_that_a_step_takes_for_itself_repeats_with_frozen_layers(plan):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(4, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.SiLU()]
    net = torch.nn.Sequential(*layers, torch.nn.Conv2d(32, 4, 3)).eval().requires_grad_(False)
    net[1].running_var.uniform_(0.3, 2)
    net[1].running_mean.uniform_(-1, 1)
    w, x = torch.tensor(0.05, requires_grad=True), torch.randn(4, 4, 16, 16)

    got = torch.autograd.grad(
        CheckpointedChain(guided(net, w), M, plan=plan, frozen="auto")(x).sum(), w
    )
    expected = torch.autograd.grad(plain(guided(net, w), M, x).sum(), w)

    assert torch.equal(got[0], expected[0])


def test_frozen_layers_keep_less_of_a_gradient_that_a_step_takes_in_its_first_run():
    layers = [nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU()] * 8
    net, x = nn.Sequential(*layers).requires_grad_(False), torch.randn(4, 4, 16, 16)

    def peak(frozen):
        w = torch.tensor(0.1, requires_grad=True)
        chain = CheckpointedChain(guided(net, w), M, frozen=frozen)
        with meter() as reading:
            chain(x)
        return reading.peak_bytes

    assert peak("auto") < 0.6 * peak("off")


@pytest.mark.parametrize("frozen", ["off", "auto"])
def test_checkpointing_inside_a_step_is_exact(frozen):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.GroupNorm(2, 4),
                              torch.nn.SiLU(), torch.nn.GroupNorm(2, 4),
                              torch.nn.SiLU(), torch.nn.Conv2d(4, 2, 3, padding=1))  # fmt: skip
    net.requires_grad_(False)
    x = torch.randn(1, 2, 4, 4, requires_grad=True)

    def step(x, i):
        return torch.tanh(checkpoint(net, x, use_reentrant=False))

    expected = torch.autograd.grad(plain(step, M, x).sum(), x)[0]
    chain = CheckpointedChain(step, M, frozen=frozen)
    assert torch.equal(torch.autograd.grad(chain(x).sum(), x)[0], expected)


@every_plan
def test_a_step_that_calls_backward_on_tensors_outside_is_refused(plan):
    w = leaf(3)

    def step(x, i):
        with torch.enable_grad():
            (w * x.detach()).sum().backward()
        return torch.sin(w * x)

    with pytest.raises(ChainError, match=r"calls `backward\(\)` on something"):
        CheckpointedChain(step, M, plan=plan)(torch.ones(3))


@every_plan
def test_a_step_that_needs_its_graph_begins_with_the_same_noise_again(plan):
    w, x = leaf(3), leaf(3)

    def step(x, i):
        noise = torch.randn(3)
        with torch.enable_grad():
            own = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(torch.sin(w.detach() * own + noise).sum(), own)
        return torch.tanh(w * x + g)

    grads = []
    for run in (lambda x: plain(step, M, x), CheckpointedChain(step, M, plan=plan)):
        torch.manual_seed(1)
        grads.append(torch.autograd.grad(run(x).sum(), [w, x]))
    assert all(map(torch.equal, *grads))


def test_a_graph_that_a_step_records_itself_ends_with_the_step():
    net = nn.Linear(3, 3)

    def step(x, i):
        with torch.enable_grad():
            return x + torch.tanh(net(x))

    states = []
    x = torch.ones(2, 3, requires_grad=True)
    chain = CheckpointedChain(lambda x, i: (states.append(x), step(x, i))[1], 4)
    y = chain(x)

    assert all(state.grad_fn is None for state in states)
    y.sum().backward()
    ours, x.grad = x.grad, None
    plain(step, 4, x).sum().backward()
    assert torch.equal(ours, x.grad)


def test_a_step_that_takes_a_gradient_of_its_own_has_the_plain_loops_gradient():
    w, runs = torch.ones(3, requires_grad=True), []

    def step(x, i):
        runs.append(i)
        y = x.detach().requires_grad_()
        return w * x - torch.autograd.grad(y.square().sum(), y)[0]

    chain, x = CheckpointedChain(step, 5), torch.ones(3, requires_grad=True)
    for extra in (1, 0):  # the first step shows that graphs must save, once
        runs.clear()
        got = torch.autograd.grad(chain(x).square().sum(), (x, w))
        assert len(runs) == 9 + extra
        expected = torch.autograd.grad(plain(step, 5, x).square().sum(), (x, w))
        assert all(map(torch.equal, got, expected))
