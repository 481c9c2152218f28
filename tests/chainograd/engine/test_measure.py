"""Costs of steps, and the peaks predicted from them."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from chainograd import ChainError, CheckpointedChain, ReplayError, binomial, keep_last, meter
from tests.problems import Noisy, Wide, leaf

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


def test_equal_steps_are_measured_once():
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


class Count:
    """Counts, and is nobody's own."""

    calls = 0


def test_a_step_that_returns_another_state_than_when_it_was_measured_is_refused():
    w, count = leaf(3), Count()

    def step(x, i):
        count.calls += 1
        return torch.sin(w * x) * (1 + count.calls / 10)

    with pytest.raises(ReplayError, match="Step 0 returned one state when the byte budget"):
        CheckpointedChain(step, M, plan="1GiB")(torch.ones(3))


def test_measuring_leaves_no_trace_in_the_objects_of_a_step():
    w, log, total = leaf(3), [], torch.zeros(())

    def step(x, i):
        log.append(i)
        total.add_(1)
        return torch.sin(w * x)

    CheckpointedChain(step, M, plan="1GiB")(torch.ones(3)).sum().backward()
    assert log == list(range(M))
    assert total == M


def test_measuring_a_step_that_changes_a_large_tensor_is_refused():
    w, total = leaf(3), torch.zeros(1 << 17)

    def step(x, i):
        total.add_(1)
        return torch.sin(w * x)

    with pytest.raises(ChainError, match="changed one of its own tensors in place"):
        CheckpointedChain(step, M, plan="1GiB")(torch.ones(3))
