"""Noise of Python and numpy, which later calls look for around the forward pass only."""

import random

import numpy
import pytest
import torch

from chainograd import CheckpointedChain, binomial
from tests.problems import plain

M = 6
DRAWS = {
    "python": random.random,
    "python, normal": lambda: random.gauss(0, 1),
    "numpy": numpy.random.rand,
    "numpy, normal": numpy.random.randn,  # every second number is one that was left over
}


class Drawing(torch.nn.Module):
    """Draws from a host's stream in the steps that it is told to."""

    def __init__(self, draw):
        super().__init__()
        self.draw, self.at = draw, ()
        self.norm = torch.nn.BatchNorm1d(3, affine=False)
        self.w = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x, i):
        """Return the next state."""
        x = torch.sin(self.w * x) + 0.1 * self.norm(x)
        return x * (1 + self.draw()) if i in self.at else x


def outcome(run, x, w):
    random.seed(1)
    numpy.random.seed(1)
    y = run(x)
    after = random.random(), numpy.random.rand()
    return y.detach(), torch.autograd.grad(y.square().sum(), w)[0], after


@pytest.mark.parametrize("plan", ["nodes", binomial(M, slots=2)], ids=["nodes", "binomial"])
@pytest.mark.parametrize("at", [(3,), (0, 1, 4), tuple(range(M))], ids=str)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_steps_that_begin_to_draw_in_a_later_call_are_replayed(draw, at, plan):
    nets = [Drawing(draw), Drawing(draw)]
    chain = CheckpointedChain(nets[1], M, plan=plan)
    x = torch.linspace(-1, 1, 12).view(4, 3)

    for steps in ((), at, at, (), at):
        for net in nets:
            net.at = steps
        expected = outcome(lambda x: plain(nets[0], M, x), x, nets[0].w)
        got = outcome(chain, x, nets[1].w)

        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
        assert got[2] == expected[2]
        # Statistics of batches count a step once, although the forward pass may have run twice.
        assert torch.equal(nets[1].norm.running_mean, nets[0].norm.running_mean)


def test_streams_that_nothing_draws_from_are_read_around_step_0_and_the_pass_only(monkeypatch):
    chain = CheckpointedChain(lambda x, i: torch.sin(x + i), 40)
    x = torch.ones(3, requires_grad=True)
    reads = []
    get_state = numpy.random.get_state

    def read(**how):
        reads.append(how)
        return get_state(**how)

    monkeypatch.setattr(numpy.random, "get_state", read)

    chain(x).sum().backward()

    assert len(reads) == 3


@pytest.mark.parametrize(("at", "forward"), [((0, 2), M), ((0,), M), ((2,), 2 * M), ((), M)])
def test_only_draws_that_begin_after_step_0_cost_a_second_forward_pass(at, forward):
    net = Drawing(random.random)
    net.at, calls = at, []

    def step(x, i):
        calls.append(i)
        return net(x, i)

    chain = CheckpointedChain(step, M)
    for expected in (forward, M):
        calls.clear()
        y = chain(torch.linspace(-1, 1, 12).view(4, 3))
        assert len(calls) == expected
        y.sum().backward()
        assert len(calls) == expected + M - 1
