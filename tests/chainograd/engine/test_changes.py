"""What changes between the two passes of a chain: right, or refused with the step."""

import pytest
import torch

from chainograd import ChangedTensorError, CheckpointedChain
from tests.problems import M, Net, every_plan, leaf, plain, ramp


@every_plan
def test_a_parameter_frozen_after_the_forward_pass_gets_no_gradient_and_x_still_does(plan):
    w, x = ramp(), ramp()

    def step(x, i):
        return torch.sin(w * x)

    expected = torch.autograd.grad(plain(step, M, x).sum(), x)[0]
    y = CheckpointedChain(step, M, plan=plan)(x)
    w.requires_grad_(False)
    y.sum().backward()

    assert w.grad is None
    assert torch.equal(x.grad, expected)


@every_plan
def test_another_network_of_the_same_object_may_change_between_the_passes(plan):
    class Trainer:
        def __init__(self):
            torch.manual_seed(0)
            self.generator, self.critic = Net(4, torch.float64), torch.nn.Linear(4, 1)

        def step(self, x, i):
            return self.generator(x, i)

    trainer, x = Trainer(), torch.ones(2, 4).double()
    wanted = list(trainer.generator.parameters())
    expected = torch.autograd.grad(plain(trainer.step, M, x).sum(), wanted)
    y = CheckpointedChain(trainer.step, M, plan=plan)(x)
    with torch.no_grad():
        trainer.critic.weight.add_(1)

    assert all(map(torch.equal, torch.autograd.grad(y.sum(), wanted), expected))


@every_plan
def test_each_step_reruns_with_its_own_requires_grad_flags_and_the_callers_return(plan):
    w, v, x = leaf(3), leaf(3), torch.ones(3)

    def step(x, i):
        w.requires_grad_(i >= 2)
        return torch.sin(w * x) + v

    grads = []
    for run in (lambda x: plain(step, M, x), CheckpointedChain(step, M, plan=plan, params=[w])):
        w.requires_grad_()
        w.grad = v.grad = None
        y = run(x)
        y.sum().backward()
        grads.append([w.grad, v.grad])
        assert w.requires_grad
    assert all(map(torch.equal, *grads))


def test_a_parameter_changed_in_place_is_refused_with_the_step():
    w = torch.ones(3, requires_grad=True)
    loss = CheckpointedChain(lambda x, i: torch.sin(w + x), 5)(torch.ones(3)).sum()
    with torch.no_grad():
        w += 1

    with pytest.raises(RuntimeError, match=r"in place|inplace"):
        loss.backward()


def test_a_changed_parameter_that_the_kept_graph_does_not_need_is_refused_too():
    w = torch.ones(3, requires_grad=True)
    loss = CheckpointedChain(lambda x, i: x + w if i == 4 else x * w, 5)(torch.ones(3)).sum()
    with torch.no_grad():
        w += 1

    with pytest.raises(ChangedTensorError, match="step 3"):
        loss.backward()


def test_a_node_changed_in_place_is_refused_with_its_step():
    w = torch.ones((), requires_grad=True)
    states = CheckpointedChain(lambda x, i: w * x, M).trajectory(torch.ones(2))
    loss = states[-1].sum()
    with torch.no_grad():
        states[3].mul_(2)

    with pytest.raises(ChangedTensorError, match="enters step 3"):
        loss.backward()
