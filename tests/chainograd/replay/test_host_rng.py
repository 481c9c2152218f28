"""Noise of Python and numpy, which is looked for after every step."""

import random

import numpy
import pytest
import torch

from chainograd import CheckpointedChain, binomial
from chainograd.replay import host_rng as host_streams
from chainograd.replay.rng import RNGSources
from tests.problems import PLANS, M, plain

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
        assert torch.equal(nets[1].norm.running_mean, nets[0].norm.running_mean)


def test_streams_that_no_step_draws_from_are_read_whole_once_a_call(
    monkeypatch,
):
    numpy.random.seed(0)  # no number is left over from a pair
    reads, get_state = [], numpy.random.get_state

    def read(**how):
        reads.append(how)
        return get_state(**how)

    monkeypatch.setattr(numpy.random, "get_state", read)

    def reads_of(steps):
        reads.clear()
        x = torch.ones(3, requires_grad=True)
        CheckpointedChain(lambda x, i: torch.sin(x + i), steps)(x).sum().backward()
        return len(reads)

    assert reads_of(40) == reads_of(4) <= 3


@pytest.mark.parametrize("at", [(0, 2), (0,), (2,), (M - 1,), ()], ids=str)
def test_the_forward_pass_runs_each_step_once_wherever_draws_begin(at):
    net = Drawing(random.random)
    net.at, calls = at, []

    def step(x, i):
        calls.append(i)
        return net(x, i)

    chain = CheckpointedChain(step, M)
    for _ in range(2):
        calls.clear()
        y = chain(torch.linspace(-1, 1, 12).view(4, 3))
        assert calls == list(range(M))
        y.sum().backward()
        assert len(calls) == 2 * M - 1


def moves(draw):
    """Return whether a draw is seen, and is seen to be undone."""
    streams = RNGSources(())
    before = streams.state()
    assert streams.state(before) is before
    draw()
    after = streams.state(before)
    streams.set(before)
    assert streams.state(before) is before
    assert streams.state() == before
    return after is not before and after != before


@pytest.mark.parametrize("first", [None, *DRAWS], ids=str)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_number_drawn_is_seen_and_can_be_drawn_again(draw, first):
    random.seed(3)
    numpy.random.seed(3)
    if first is not None:
        DRAWS[first]()
    assert moves(draw)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_streams_are_read_the_public_way_where_words_are_not_in_memory(draw, monkeypatch):
    monkeypatch.setattr("chainograd.replay.host_rng._address_of_python", lambda: None)
    monkeypatch.setattr("chainograd.replay.host_rng._address_of_numpy", lambda source: None)
    assert moves(draw)
    assert not moves(lambda: None)


def test_a_place_in_memory_is_used_only_if_it_holds_the_words_of_the_stream(monkeypatch):
    monkeypatch.setattr(host_streams, "string_at", lambda place, size: bytes(size))

    assert host_streams._address_of_python.__wrapped__() is None
    assert host_streams._address_of_numpy.__wrapped__(numpy.random.get_bit_generator()) is None


def test_a_step_may_draw_from_numpy_with_another_bit_generator():
    before = numpy.random.get_bit_generator()
    numpy.random.set_bit_generator(numpy.random.PCG64(1))
    try:
        for draw in (numpy.random.rand, numpy.random.randn, numpy.random.randn):
            assert moves(draw)
        assert not moves(lambda: None)
    finally:
        numpy.random.set_bit_generator(before)


def test_two_readings_of_the_streams_differ_where_something_was_drawn():
    streams = RNGSources((), [named := torch.Generator()])
    before = streams.state()

    draws = (lambda: torch.rand(1), lambda: torch.rand(1, generator=named), *DRAWS.values())
    for draw in draws:
        draw()
        assert streams.state() != before
        streams.set(before)
        assert streams.state() == before
    assert before != "another thing"


def test_noise_of_another_generator_of_numpy_is_replayed():
    w = torch.ones(3, requires_grad=True)
    before = numpy.random.get_bit_generator()
    numpy.random.set_bit_generator(numpy.random.PCG64(1))

    def step(x, i):
        return torch.sin(w * x) * numpy.random.rand()

    def gradient(run):
        numpy.random.seed(3)
        return torch.autograd.grad(run(torch.ones(3)).sum(), w)[0]

    try:
        expected = gradient(lambda x: plain(step, M, x))
        for plan in ("nodes", binomial(M, slots=2)):
            assert torch.equal(gradient(CheckpointedChain(step, M, plan=plan)), expected)
    finally:
        numpy.random.set_bit_generator(before)


@pytest.mark.parametrize("draw", [random.random, numpy.random.rand, numpy.random.randn])
def test_noise_of_python_and_numpy_is_replayed_and_the_streams_go_on(draw):
    w = torch.ones((), requires_grad=True)

    def step(x, i):
        return torch.sin(w * x + draw())

    def run(chain):
        random.seed(1)
        numpy.random.seed(1)
        (g,) = torch.autograd.grad(chain(torch.ones(())), w)
        return g, random.random(), numpy.random.randn()

    expected = run(lambda x: plain(step, M, x))
    for plan in PLANS.values():
        assert run(CheckpointedChain(step, M, plan=plan)) == expected
