"""Costs of steps, the peaks predicted from them, and plans within a budget."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from chainograd import CheckpointedChain, StepCost, binomial, keep_last, meter, within
from chainograd.plans.budget import parse_bytes
from tests.problems import Noisy, Wide

MiB = 2**20


M = 9
X = torch.randn(256, 32)


def peak_of_the_chain(chain, x):
    """Return the measured peak of a chain's forward and backward pass, gradients discarded."""
    with meter() as reading:
        y = chain(x)
        torch.autograd.grad(y, list(chain.step.parameters()), torch.ones_like(y))
    return reading.peak_bytes


@pytest.mark.parametrize(
    "plan",
    [keep_last(M, 1), keep_last(M, 4), keep_last(M, M), binomial(M, slots=1), binomial(M, slots=3)],
    ids=["nodes", "last 4", "graph", "1 slot", "3 slots"],
)
def test_the_predicted_peak_is_the_measured_one(plan):
    step = Wide()
    chain = CheckpointedChain(step, M, plan=plan)
    costs = chain.measure(X)
    peak_of_the_chain(chain, X)

    predicted, measured = plan.with_costs(costs).peak_bytes, peak_of_the_chain(chain, X)

    assert abs(predicted - measured) <= 0.03 * measured


class Runs:
    """Counts what the chain does not take back: it belongs to somebody else."""

    def __init__(self):
        self.indices = []


def test_a_kind_of_step_is_measured_once():
    counted = Runs()

    def step(x, i):
        counted.indices.append(i)
        return torch.sin(x)

    chain = CheckpointedChain(step, 6)
    x = torch.ones(5, requires_grad=True)
    costs = chain.measure(x, kind=lambda i: i % 2)

    # Each kind without and with a graph (the first one twice over), and every step once to go on.
    assert sorted(counted.indices) == sorted([0, 0, 0, 0, 1, 1, *range(6)])
    assert costs[0] is costs[2]
    assert costs[0].node_bytes == 20


def test_bytes_under_fake_tensors_are_those_of_real_ones():
    step = Wide()
    real = CheckpointedChain(step, M).measure(X)
    with FakeTensorMode():
        fake = CheckpointedChain(Wide(), M).measure(torch.randn(256, 32))

    def bytes_of(cost):
        return (cost.node_bytes, cost.result_bytes, cost.graph_bytes, cost.advance_bytes,
                cost.record_bytes, cost.backprop_bytes, cost.gradient_bytes)  # fmt: skip

    assert list(map(bytes_of, fake)) == list(map(bytes_of, real))


def test_a_budget_is_kept_and_more_of_it_never_takes_longer():
    step = Wide()
    chain = CheckpointedChain(step, M)
    costs = tuple(
        replace(cost, forward_seconds=1.0 + (i % 3 == 0), backward_seconds=1.0)
        for i, cost in enumerate(chain.measure(X))
    )
    least = binomial(M, slots=1).with_costs(costs).peak_bytes
    most = keep_last(M, M).with_costs(costs).peak_bytes
    seconds = []
    for budget in range(least, most + MiB, MiB // 2):
        plan = within(budget, costs)
        assert plan.peak_bytes <= budget
        measured = peak_of_the_chain(CheckpointedChain(step, M, plan=plan), X)
        assert measured <= budget + max(0.03 * budget, MiB)
        seconds.append(plan.seconds)

    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > seconds[-1]
    assert within(most, costs).evaluations == M


def test_a_chain_with_a_budget_measures_once_and_gives_the_gradient_of_the_plain_loop():
    step = Wide()
    x = X.clone().requires_grad_()
    y = x
    for i in range(M):
        y = step(y, i)
    expected = torch.autograd.grad(y.sum(), [x, *step.parameters()])
    chain = CheckpointedChain(step, M, plan="5 MiB")

    for _ in range(2):
        got = torch.autograd.grad(chain(x).sum(), [x, *step.parameters()])
        assert all(map(torch.equal, got, expected))
    assert 1 < chain.plan.graphs < M
    assert chain.plan.peak_bytes <= 5 * MiB
    assert peak_of_the_chain(chain, X) <= 5 * MiB * 1.03


def test_a_budget_that_cannot_be_met_says_the_least_that_can():
    x = X.clone().requires_grad_()

    with pytest.raises(ValueError, match=r"10000.*needs [\d,]+ at the least.*frozen"):
        CheckpointedChain(Wide(), M, plan=10_000)(x)


@pytest.mark.parametrize(
    ("text", "number"),
    [("8GiB", 8 * 2**30), ("500 MB", 500 * 10**6), ("1.5kb", 1500), (7, 7), ("10B", 10)],
)
def test_bytes_can_be_written_with_units(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize("bad", ["8 apples", "GiB", "", 0, -1, True, 2.5, "0 MB"])
def test_other_bytes_are_refused_with_examples(bad):
    with pytest.raises(ValueError, match="'8GiB'"):
        CheckpointedChain(lambda x, i: x, 3, plan=bad)


def test_a_plan_prints_as_a_table():
    cost = StepCost(MiB, MiB, 10 * MiB, 2 * MiB, 11 * MiB, 12 * MiB, MiB, 0.5, 1.0)
    table = str(keep_last(10, 3).with_costs((cost,) * 10))

    assert "step evaluations  17   (plain loop: 10)" in table
    assert "graphs kept       3" in table
    assert "MiB" in table
    assert "1.23 of the plain loop" in table  # (17 x 0.5 + 10) / 15
    assert str(keep_last(10, 3)).count("\n") == 3


def test_a_plan_without_costs_says_how_to_get_some():
    with pytest.raises(ValueError, match=r"chain\.measure"):
        _ = keep_last(3, 1).peak_bytes
    with pytest.raises(ValueError, match="2 entries, but the plan has 3 steps"):
        keep_last(3, 1).with_costs((StepCost(1, 1, 1, 1, 1, 1),) * 2)


@pytest.mark.parametrize("plan", ["nodes", "graph", binomial(M, slots=2), "3 MiB"], ids=str)
def test_a_run_under_fake_tensors_has_the_peak_of_a_real_one(plan):
    def peak():
        step, x = Noisy(64, torch.float32), torch.randn(512, 64, requires_grad=True)
        chain = CheckpointedChain(step, M, plan=plan)
        for _ in range(2):
            with meter() as reading:
                y = chain(x)
                torch.autograd.grad(y, [x, *step.parameters()], torch.ones_like(y))
        return reading.peak_bytes, chain.plan.evaluations

    real, evaluations = peak()
    with FakeTensorMode():
        fake, fake_evaluations = peak()

    if plan == "3 MiB":  # chosen by seconds, which fakes do not have
        assert fake <= 3 * MiB
        return
    assert evaluations == fake_evaluations
    assert 0 <= real - fake <= 8 * M  # digests, which fakes do not have


def test_batch_norms_in_training_run_under_fake_tensors_too():
    def readings():
        torch.manual_seed(0)
        step = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
        chain = CheckpointedChain(lambda x, i: step(x), 4)
        x = torch.randn(16, 8)
        costs = chain.measure(x)
        with meter() as reading:
            chain(x).sum().backward()
        return [cost.graph_bytes for cost in costs], reading.peak_bytes

    real, peak = readings()
    with FakeTensorMode():
        fake, fake_peak = readings()

    assert fake == real
    assert abs(fake_peak - peak) <= 8 * 4 * 2
