"""Buffers count each step once, and modules run again in the mode of their first run."""

import random

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from chainograd import CheckpointedChain, binomial
from tests.problems import PLANS, M, every_plan, plain


class Layers(torch.nn.Module):
    """Drops out and normalises by the batch in training only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.3)
        )

    def forward(self, x, i):
        """Return the next state."""
        return x + torch.tanh(self.layers(x))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("training", [True, False])
def test_a_mode_that_changes_before_the_backward_pass_does_not_matter(training, plan):
    x = torch.linspace(-1, 1, 24).view(6, 4)

    def outcome(net, run):
        net.train(training)
        torch.manual_seed(1)
        loss = run(x).square().sum()
        net.train(not training)
        loss.backward()
        assert all(module.training != training for module in net.modules())
        return [loss.detach(), *(p.grad for p in net.parameters()), *net.buffers()]

    nets = [Layers(), Layers()]
    expected = outcome(nets[0], lambda x: plain(nets[0], M, x))
    got = outcome(nets[1], CheckpointedChain(nets[1], M, plan=plan))

    assert all(map(torch.equal, got, expected))


class Counting(torch.nn.Module):
    """Counts and averages by exchanging its buffers for others."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.full((3,), 0.9))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x, i):
        self.count = self.count + 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return torch.sin(self.w * x)


@pytest.mark.parametrize("plan", ["nodes", "graph", binomial(M, slots=1)], ids=str)
@pytest.mark.parametrize("options", [{}, {"micro_batch": 2}], ids=["whole", "slices"])
def test_buffers_that_a_module_replaces_count_each_step_once(plan, options):
    if plan == "graph" and options:
        pytest.skip("slices keep no graphs")
    x = torch.randn(2, 3)
    net, oracle = Counting(), Counting()
    for _ in range(2):
        CheckpointedChain(net, M, plan=plan, **options)(x).sum().backward()
        plain(oracle, M, x).sum().backward()

    assert net.count == oracle.count == 2 * M
    assert torch.equal(net.mean, oracle.mean)
    assert torch.equal(net.w.grad, oracle.w.grad)


def test_buffers_that_a_module_replaces_count_once_where_the_run_starts_over():
    x = torch.randn(2, 3)
    net = Counting()

    def step(x, i):
        if i == 3:  # not at step 0, so it is only seen in the end
            random.random()
        return net(x, i)

    CheckpointedChain(step, M)(x).sum().backward()

    assert net.count == M


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_statistics_of_batches_are_updated_once_a_step(plan):
    def make():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh()
        ).double()

    x = torch.randn(8, 4, dtype=torch.float64)
    net, reference = make(), make()
    plain(lambda x, i: reference(x), M, x).sum().backward()
    chain = CheckpointedChain(lambda x, i: net(x), M, plan=plan)
    chain.measure(x)

    chain(x).sum().backward()

    assert all(map(torch.equal, net.buffers(), reference.buffers()))
    assert net[1].num_batches_tracked == M
    grads = [p.grad for p in net.parameters()]
    assert all(map(torch.equal, grads, (p.grad for p in reference.parameters())))


@every_plan
def test_a_buffer_that_a_step_reads_is_as_it_was_when_the_step_ran_first(plan):
    nets = [spectral_norm(nn.Linear(8, 8)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x, grads = torch.randn(4, 8), []
    runs = plain, lambda step, M, x: CheckpointedChain(step, M, plan=plan)(x)
    for net, run in zip(nets, runs, strict=True):
        run(lambda x, i, net=net: torch.tanh(net(x)), M, x).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(map(torch.equal, *grads))
    assert all(map(torch.equal, *([*net.buffers()] for net in nets)))
