"""One backward pass through a part of a trajectory: what it runs, frees and hands on."""

import pytest
import torch

from chainograd import CheckpointedChain, ReplayError, binomial
from chainograd.metering import meter
from tests.chainograd.trajectory.passes import M, Run, Uses, by_chain, loss_on, plain, same, start
from tests.problems import Counted


def counted(plan="nodes"):
    x, c, _ = start()
    step = Counted(Uses())
    states = CheckpointedChain(step, M, plan=plan).trajectory(x, c)
    step.runs.clear()
    return states, step.runs


@pytest.mark.parametrize("plan", ["nodes", "graph", binomial(M, slots=2), binomial(M, slots=1)],
                         ids=["nodes", "graph", "2 slots", "1 slot"])  # fmt: skip
def test_two_passes_through_two_parts_run_as_many_steps_as_one_pass(plan):
    states, runs = counted(plan)
    loss_on(states, [M]).backward()
    once = list(runs)
    states, runs = counted(plan)
    gs = torch.autograd.grad(loss_on(states, [M]), [states[3]["a"], states[3]["b"]])
    torch.autograd.backward([states[3]["a"], states[3]["b"]], gs)

    assert runs == once


@pytest.mark.parametrize("plan", ["nodes", "graph", binomial(M, slots=2), binomial(M, slots=1)],
                         ids=["nodes", "graph", "2 slots", "1 slot"])  # fmt: skip
def test_steps_behind_the_last_loss_are_not_run_again(plan):
    states, runs = counted(plan)
    loss_on(states, [1, 3]).backward(retain_graph=True)

    assert all(i < 3 for i in runs)


def test_an_early_loss_leaves_kept_graphs_to_later_passes():
    states, runs = counted("graph")
    loss_on(states, [2]).backward(retain_graph=True)
    loss_on(states, [M]).backward()

    assert sorted(runs) == [0, 1]  # whose graphs the first pass freed


def test_a_pass_through_freed_steps_is_refused_and_a_pass_through_others_is_not():
    states, _ = counted()
    loss = loss_on(states, [M])
    torch.autograd.grad(loss, states[4]["a"])

    with pytest.raises(RuntimeError, match="retain_graph=True"):
        torch.autograd.grad(loss_on(states, [M]), states[4]["a"])
    loss_on(states, [4]).backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss_on(states, [1]).backward()


def test_after_a_hook_of_the_caller_fails_a_pass_can_start_before_it():
    run, expected = Run(by_chain()), Run(plain)
    for each in (run, expected):
        failing = each.states[3]["a"].register_hook(lambda g: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loss_on(each.states, [M]).backward()
        failing.remove()
        loss_on(each.states, [2]).backward()

    same(run.found(), expected.found())


def test_a_partial_pass_frees_the_nodes_behind_it():
    x = torch.ones(1000, requires_grad=True)
    states = CheckpointedChain(lambda x, i: torch.sin(x), M).trajectory(x)
    run = states[M].grad_fn.link.run
    torch.autograd.grad(states[M].sum(), states[3])

    assert sorted(run.memory.nodes) == [0, 1, 2, 3]
    assert not run.memory.graphs


def test_a_transform_is_applied_once_whether_or_not_the_pass_is_done_in_parts():
    def gradients(parted):
        w = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
        x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        seen = []

        def transform(i, g):
            seen.append(i)
            return g * 0.5

        step = lambda x, i: w * x * x  # noqa: E731
        states = CheckpointedChain(step, 4, grad_transform=transform).trajectory(x)
        if parted:
            (g,) = torch.autograd.grad(states[4] + 2 * states[2], states[2])
            states[2].backward(g)
            assert seen == [3, 2, 1, 0]
            return g, x.grad
        states[2].retain_grad()
        (states[4] + 2 * states[2]).backward()
        assert seen == [3, 2, 1, 0]
        return states[2].grad, x.grad

    (g, of_x), (expected, expected_of_x) = gradients(True), gradients(False)

    assert torch.equal(g, expected)
    assert torch.equal(of_x, expected_of_x)


def test_the_report_has_the_norms_of_whole_cotangents():
    w = torch.tensor(0.5, requires_grad=True)
    x = torch.ones((), requires_grad=True)
    chain = CheckpointedChain(lambda x, i: w * x + 0 * x, 3)
    states = chain.trajectory(x)
    (states[3] + states[2]).backward()

    assert [step.cotangent_norm for step in chain.report().steps] == [0.375, 0.75, 1.5]


def test_a_step_that_is_not_repeatable_is_refused_in_a_part_of_the_chain():
    calls = []
    w = torch.ones((), requires_grad=True)

    def step(x, i):
        calls.append(i)
        return torch.sin(w * x) + (0.1 * calls.count(i) if i == 2 else 0)

    states = CheckpointedChain(step, M).trajectory(torch.ones(2))
    (g,) = torch.autograd.grad(states[M].sum(), states[3])
    with pytest.raises(ReplayError, match="Step 2"):
        states[3].backward(g)


def test_gradients_are_handed_to_autograd_without_a_copy():
    w = torch.randn(64, 64, requires_grad=True)
    upstream = torch.ones(2, 64, requires_grad=True)
    x = upstream * 2
    states = CheckpointedChain(lambda x, i: torch.tanh(x @ w), M).trajectory(x)
    held = []
    x.register_hook(lambda g: held.append(reading.live_bytes))
    with meter("cpu") as reading:
        states[M].sum().backward(retain_graph=True)

    # The gradient of w and those of x and upstream: no node, and w's only once.
    assert held[0] <= w.nbytes + 4 * x.nbytes
    assert reading.live_bytes <= w.nbytes + 2 * x.nbytes
