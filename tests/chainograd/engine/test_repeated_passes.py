"""Several backward passes through one chain."""

import pytest
import torch

from chainograd import CheckpointedChain
from tests.problems import PLANS, M, Noisy


def test_a_second_backward_pass_needs_retain_graph_and_says_so():
    w = torch.ones((), requires_grad=True)
    loss = CheckpointedChain(lambda x, i: w * x, 3)(torch.ones(2)).sum()
    loss.backward()

    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_two_backward_passes_give_equal_gradients_under_every_plan(plan):
    net = Noisy(4, torch.float64)
    loss = CheckpointedChain(net, M, plan=plan)(torch.randn(2, 4, dtype=torch.float64)).sum()

    first = torch.autograd.grad(loss, net.w, retain_graph=True)[0]
    second = torch.autograd.grad(loss, net.w)[0]

    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("grad_steps", "used_from"), [(1, 0), ({1, M - 1}, 0), (None, M - 1)], ids=str
)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_second_pass_needs_no_state_before_the_steps_that_a_gradient_passes(
    plan, grad_steps, used_from
):
    w = torch.tensor(0.7, requires_grad=True)

    def step(x, i):
        return torch.sin(w * x) if i >= used_from else torch.cos(x)

    y = CheckpointedChain(step, M, plan=plan, grad_steps=grad_steps)(torch.ones(()))

    grads = [torch.autograd.grad(y, w, retain_graph=True)[0] for _ in range(3)]

    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])
