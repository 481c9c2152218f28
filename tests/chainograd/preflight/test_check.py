"""The preflight as a whole: what it runs, what it leaves alone, what it refuses."""

import random

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from chainograd import ChainError, CheckpointedChain, Store
from chainograd.captured.find import find_captured
from tests.chainograd.preflight.provoked import M, kinds, only, squares
from tests.problems import Counted


def test_a_good_chain_has_no_findings_and_says_what_was_looked_at(net):
    findings = CheckpointedChain(net, M).check(torch.randn(4, 8), loss=squares)

    assert not findings
    assert len(findings) == 0
    assert "0, 1, 2, 19" in str(findings)
    assert "\n" not in str(findings)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 50])
def test_the_first_three_steps_and_the_last_are_run_closely_and_all_of_them_once(num_steps, net):
    step = Counted(net)
    CheckpointedChain(step, num_steps).check(torch.randn(4, 8))

    closely = {*range(min(3, num_steps)), num_steps - 1}
    assert set(step.runs) == set(range(num_steps))
    assert {i for i in step.runs if step.runs.count(i) > 1} == closely
    if num_steps > 3:
        assert len(step.runs) == 13 + num_steps


@pytest.mark.parametrize(
    "options",
    [
        {"plan": "graph"},
        {"plan": "1MiB"},
        {"micro_batch": 2},
        {"frozen": "auto"},
        {"store": Store(dtype=torch.bfloat16)},
        {"grad_steps": 1},
        {"grad_steps": lambda M: 1 / 0},
        {"grad_transform": lambda i, g: 2 * g},
        {"verify": "off"},
    ],
    ids=lambda options: " ".join(options),
)
def test_no_option_of_a_chain_makes_a_finding(options, net):
    assert kinds(net, **options) == []


def test_a_state_may_be_a_carry_with_what_is_not_a_tensor(net):
    def step(carry, i):
        x, memory = carry
        previous = memory.get("previous", 0 * x)
        return net(x, i) + 0.1 * previous, {"previous": x, "index": i, "nothing": None}

    x = torch.randn(4, 8, requires_grad=True)

    assert kinds(step, (x, {}), loss=lambda carry: squares(carry[0])) == []


def test_states_may_be_complex_and_computed_under_autocast():
    w = torch.randn(8, dtype=torch.complex64, requires_grad=True)
    assert kinds(lambda x, i: torch.sin(w * x), torch.randn(8, dtype=torch.complex64)) == []

    layer = torch.nn.Linear(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert kinds(lambda x, i: torch.tanh(layer(x)).float()) == []


def test_arguments_and_what_is_used_in_the_last_step_only_are_no_findings(net):
    c = torch.randn(8, requires_grad=True)

    assert kinds(lambda x, i, c: net(x, i, c), args=(c,)) == []
    assert kinds(lambda x, i: torch.tanh(x * c) if i == M - 1 else 0.9 * x) == []


def test_a_check_leaves_no_trace(net):
    net.dropout = torch.nn.Dropout(0.3)
    net.norm = torch.nn.BatchNorm1d(8)
    chain = CheckpointedChain(lambda x, i: net.norm(net.dropout(net(x, i))), M)
    x = torch.randn(4, 8, requires_grad=True)
    chain(x).sum().backward()
    report, grads = str(chain.report()), [p.grad.clone() for p in net.parameters()]
    buffers = [buffer.clone() for buffer in net.buffers()]
    versions = [p._version for p in net.parameters()]
    streams = torch.get_rng_state(), random.getstate()

    with torch.no_grad():
        assert chain.check(x, loss=lambda x: squares(x) * torch.rand(()))
        assert not torch.is_grad_enabled()

    assert str(chain.report()) == report
    assert all(map(torch.equal, grads, (p.grad for p in net.parameters())))
    assert all(map(torch.equal, buffers, net.buffers()))
    assert versions == [p._version for p in net.parameters()]
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert random.getstate() == streams[1]
    assert net.training
    assert x.is_leaf
    assert x.requires_grad


def test_a_check_sees_the_same_where_gradients_are_turned_off_around_it(net):
    with torch.no_grad():
        assert kinds(net, loss=squares) == []
        assert kinds(lambda x, i: net(x, i).detach()) == ["detached"]


def test_a_last_step_that_cannot_take_this_state_is_left_out(net):
    def fails(x, i):
        return net(x, i) if i < M - 1 else 1 / 0

    def overflows(x, i):
        return net(x, i) / (i < M - 1)

    assert "steps 0, 1, 2:" in str(CheckpointedChain(fails, M).check(torch.randn(4, 8)))
    assert "steps 0, 1, 2:" in str(CheckpointedChain(overflows, M).check(torch.randn(4, 8)))


def test_an_error_of_the_steps_own_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError):
        CheckpointedChain(lambda x, i: x / (1 // i), M).check(torch.ones(1))


def test_what_the_chain_would_refuse_is_a_finding():
    norm = torch.nn.BatchNorm1d(8)
    finding = CheckpointedChain(lambda x, i: norm(x), M, micro_batch=2).check(torch.randn(4, 8))[0]

    assert finding.kind == "refused"
    assert "micro_batch=2" in finding.text
    with pytest.raises(ChainError):
        CheckpointedChain(lambda x, i: norm(x), M, micro_batch=2)(torch.randn(4, 8))


def test_tensors_without_values_or_without_gradients_are_refused_with_the_way_out(net):
    with torch.inference_mode():
        x = torch.randn(4, 8)
    assert "x.clone()" in only(net, x).text
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert "real tensors" in only(net, torch.randn(4, 8)).text


def test_a_network_that_fsdp_shards_is_refused_before_anything_runs(net, monkeypatch):
    def found(step, others):
        return find_captured(step, others)._replace(sharded=[net])

    monkeypatch.setattr("chainograd.engine.prepare.find_captured", found)
    step = Counted(net)

    assert "fully_shard" in only(step).text
    assert step.runs == []
