"""Operations that the preflight watches: changes in place and random draws."""

import random

import pytest
import torch
import torch.nn.functional as F

from chainograd import CheckpointedChain
from tests.chainograd.preflight.provoked import M, kinds, line, only


def test_active_dropout_is_named_with_its_module(net):
    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.1))

        def forward(self, x, i):
            return torch.tanh(self.blocks(x))

    step = Deep()
    finding = only(step)

    assert finding.kind == "dropout"
    assert "`Deep.blocks.1`" in finding.text
    assert "eval()" in finding.text
    assert kinds(step.eval()) == []
    assert kinds(lambda x, i: F.dropout(net(x, i), 0.2)) == ["dropout"]


def test_dropout_of_attention_weights_is_dropout():
    layer = torch.nn.Linear(8, 8)

    def step(x, i):
        y = layer(x)[:, None]
        return torch.tanh(F.scaled_dot_product_attention(y, y, y, dropout_p=0.1)[:, 0])

    assert kinds(step) == ["dropout"]


def test_batch_norm_in_training_is_named_with_its_module():
    step = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    run = lambda x, i: torch.tanh(step(x))  # noqa: E731
    finding = only(run)

    assert finding.kind == "batch norm"
    assert "`Sequential.1`" in finding.text
    assert step[1].num_batches_tracked == 0
    assert torch.equal(step[1].running_var, torch.ones(8))
    step.eval()
    assert kinds(run) == []


def test_noise_from_the_global_stream_is_named_and_is_not_called_wrong(net):
    def step(x, i):
        return net(x, i) + 0.1 * torch.randn_like(x)  # a draw

    finding = only(step)

    assert (finding.kind, finding.step, finding.where) == ("noise", 0, line("a draw"))
    assert "the gradient is right" in finding.text
    assert "SeededNoise" in finding.text


def test_noise_from_python_is_noise(net):
    assert only(lambda x, i: net(x, i) * random.random()).kind == "noise"


def test_noise_of_named_generators_and_of_seeds_is_a_value(net):
    generator = torch.Generator().manual_seed(0)

    def named(x, i):
        return net(x, i) + torch.randn(x.shape, generator=generator)

    def fresh(x, i):
        return net(x, i) + torch.randn(x.shape, generator=torch.Generator().manual_seed(i))

    def seeded(x, i):
        return net(x, i) + torch.randn(x.shape, generator=generator.manual_seed(i))

    def seeding(x, i):
        with torch.random.fork_rng():
            torch.manual_seed(i + 5)
            return net(x, i) + torch.randn(x.shape)

    assert kinds(named, generators=[generator]) == []
    assert kinds(fresh) == []
    assert kinds(seeded) == []
    assert kinds(seeding) == []


def test_a_generator_that_the_chain_does_not_know_is_named_and_put_back(net):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()

    def step(x, i):
        return net(x, i) + torch.randn(x.shape, generator=generator)  # a generator

    finding = only(step)

    assert (finding.kind, finding.where) == ("unknown generator", line("a generator"))
    assert "generators=[generator]" in finding.text
    assert torch.equal(generator.get_state(), before)


def test_a_state_changed_in_place_is_named_with_its_line(net):
    def step(x, i):
        x += 1  # a state
        return net(x, i)

    x = torch.zeros(4, 8)
    finding = only(step, x)

    assert (finding.kind, finding.step, finding.where) == ("changed in place", 0, line("a state"))
    assert "x = x + …" in finding.text
    assert not x.any()
    assert kinds(step, torch.zeros(4, 8, requires_grad=True)) == ["changed in place"]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.mul_(2),
        lambda x: x.__setitem__(0, 1.0),
        lambda x: F.relu(x, inplace=True),
        lambda x: torch.add(x, 1, out=x),
        lambda x: x.data.mul_(2),
    ],
    ids=["method", "item", "layer", "out", "data"],
)
def test_every_way_to_change_a_state_in_place_is_seen(change, net):
    def step(x, i):
        with torch.no_grad():
            change(x)
        return net(x, i)

    x = torch.randn(4, 8)
    before = x.clone()

    assert "changed in place" in kinds(step, x)
    assert torch.equal(x, before)


def test_an_argument_changed_in_place_is_named_and_put_back(net):
    def step(x, i, table):
        table[0] += 1  # an argument
        return net(x, i)

    table = torch.zeros(3)
    (finding,) = CheckpointedChain(step, M).check(torch.randn(4, 8), table)

    assert (finding.kind, finding.where) == ("changed in place", line("an argument"))
    assert not table.any()


def test_a_parameter_or_a_buffer_changed_in_place_is_named_and_put_back(net):
    net.register_buffer("mean", torch.zeros(8))
    net.eval()

    def average(x, i):
        net.mean.lerp_(x.detach().mean(0), 0.1)  # a buffer
        return net(x, i)

    def decay(x, i):
        with torch.no_grad():
            net.b.mul_(0.9)  # a parameter
        return net(x, i)

    before = net.b.detach().clone()

    assert only(average).where == line("a buffer")
    assert not net.mean.any()
    assert only(decay).where == line("a parameter")
    assert torch.equal(net.b, before)


def test_a_tensor_of_the_steps_own_may_be_changed_in_place(net):
    def step(x, i):
        y = torch.zeros_like(x)
        y += x
        y[0] = 2 * y[0]
        return F.relu(net(y, i) + 1, inplace=True)

    assert kinds(step) == []


def test_a_cache_that_is_filled_once_is_no_finding(net):
    cache = torch.zeros(8)

    def step(x, i):
        if not cache.any():
            cache.fill_(0.5)
        return net(x, i) * cache

    assert kinds(step) == []
