"""How often each step of a chain runs."""

import pytest
import torch

from chainograd import CheckpointedChain, binomial
from tests.problems import PLANS, Counted, M, Net, plain


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_real_runs_evaluate_as_often_as_the_plan_says(plan):
    step = Counted(Net(4, torch.float32))
    chain = CheckpointedChain(step, M, plan=plan)
    chain(torch.randn(2, 4)).sum().backward()

    assert len(step.runs) == chain.plan.evaluations


def test_a_trajectory_runs_steps_once_more_and_only_before_the_last_state_in_a_loss():
    step = Counted(Net(4, torch.float32))
    states = CheckpointedChain(step, M).trajectory(torch.randn(2, 4))
    step.runs.clear()

    (states[2].sum() + states[4].sum()).backward()

    assert step.runs == [3, 2, 1, 0]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_steps_before_the_first_step_with_parameters_are_not_run_again(plan):
    w = torch.ones(3, requires_grad=True)
    step = Counted(lambda x, i: torch.sin(x * w) if i >= 4 else torch.cos(x))
    x = torch.linspace(0, 1, 3)
    expected = torch.autograd.grad(plain(step, M, x).sum(), w)[0]
    step.runs.clear()

    CheckpointedChain(step, M, plan=plan)(x).sum().backward()

    assert torch.equal(w.grad, expected)
    assert step.runs[:M] == list(range(M))
    if plan in ("nodes", "graph") or plan == PLANS["last 3"]:
        assert all(i >= 4 for i in step.runs[M:])
    assert len(step.runs) <= CheckpointedChain(step, M, plan=plan).plan.evaluations


def test_a_backward_pass_ends_at_the_first_step_that_a_gradient_needs():
    w = torch.ones(3, requires_grad=True)
    step = Counted(lambda x, i: torch.sin(x * w) if i >= 4 else torch.cos(x))

    CheckpointedChain(step, 6, plan=binomial(6, slots=1))(torch.ones(3)).sum().backward()

    assert step.runs == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(("plan", "evaluations"), [("nodes", 2 * 9 - 1), ("graph", 9)])
def test_steps_are_evaluated_as_often_as_the_plan_says(plan, evaluations):
    seen = []
    w = torch.ones(3, requires_grad=True)

    def step(x, i):
        seen.append(i)
        return torch.sin(w * x)

    chain = CheckpointedChain(step, 9, plan=plan)
    chain(torch.ones(3)).sum().backward()

    assert len(seen) == chain.plan.evaluations == evaluations
    if plan == "nodes":
        assert seen[9:] == list(range(7, -1, -1))
