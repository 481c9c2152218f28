"""What a chain does with a transform of cotangents: where it is called, what it may return."""

import pytest
import torch

from chainograd import ChainError, CheckpointedChain, clamped, clipped, scaled
from tests.problems import M, Net, every_plan, leaf, ramp


def test_a_loss_on_a_state_in_between_is_part_of_what_is_transformed_there():
    w = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    states = CheckpointedChain(lambda x, i: w * x, 3, grad_transform=scaled(0.5)).trajectory(x)
    (got,) = torch.autograd.grad(states[3] + 10 * states[2], x)

    at_2 = 0.5 * (1.2 + 10)
    assert got.item() == pytest.approx(0.5 * 1.2 * 0.5 * 1.2 * at_2, rel=1e-14)


def test_batches_of_gradients_are_transformed_one_by_one():
    net, x = Net(3, torch.float64), torch.randn(4, 3, dtype=torch.float64).requires_grad_()
    G = torch.randn(3, 4, 3, dtype=torch.float64)

    for transform in (scaled(0.5), clipped(0.7), clipped(0.7, of="sample"), clamped(0.3)):
        y = CheckpointedChain(net, M, grad_transform=transform)(x)
        one = [torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in G]
        (batch,) = torch.autograd.grad(y, x, G, is_grads_batched=True)
        torch.testing.assert_close(batch, torch.stack(one), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_torch_func_refuses_a_chain_with_a_transform(transform):
    chain = CheckpointedChain(lambda x, i: x.sin(), M, grad_transform=scaled(0.5))

    with pytest.raises(ChainError, match=r"`grad_transform` does not reach into torch.func"):
        transform(lambda x: chain(x).sum())(torch.ones(3))


def test_a_transform_of_cotangents_that_returns_nothing_is_refused():
    w = ramp()
    chain = CheckpointedChain(lambda x, i: torch.sin(w * x), M, grad_transform=lambda i, g: None)

    with pytest.raises(ChainError, match=r"grad_transform.*Return `g` itself"):
        chain(torch.ones(4).double()).sum().backward()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: g.sum(), r"a real cotangent of shape \(\) for state 3, .* a real .* \(4,\)"),
        (lambda g: g[None], r"a real cotangent of shape \(1, 4\) for state 3"),
        (lambda g: g * 1j, r"a complex cotangent of shape \(4,\) for state 3"),
        (lambda g: 1.0, r"a float for a cotangent for state 3"),
    ],
    ids=["summed", "stacked", "complex", "number"],
)
def test_a_transform_that_returns_another_kind_of_cotangent_is_refused(change, said):
    w = ramp()
    chain = CheckpointedChain(
        lambda x, i: torch.sin(w * x), 4, grad_transform=lambda i, g: change(g)
    )

    with pytest.raises(ChainError, match=f"`grad_transform` returned {said}"):
        chain(torch.ones(4).double()).sum().backward()


@every_plan
def test_a_transform_that_changes_its_cotangent_in_place_is_refused(plan):
    w = leaf(3)
    chain = CheckpointedChain(
        lambda x, i: x + w, M, plan=plan, grad_transform=lambda i, g: g.mul_(0.5)
    )

    with pytest.raises(ChainError, match=r"changed the cotangent of state \d in place"):
        chain(torch.ones(3)).square().sum().backward()


@every_plan
def test_a_transform_sees_the_last_state_that_a_loss_looks_at(plan):
    w, seen = torch.full((3,), 2.0, requires_grad=True), []

    def halved(i, g):
        seen.append(i)
        return g / 2

    chain = CheckpointedChain(lambda x, i: w * x, M, plan=plan, grad_transform=halved)
    states = chain.trajectory(torch.ones(3, requires_grad=True))
    states[2].sum().backward()

    assert seen == [2, 1, 0]
    assert torch.equal(states[0].grad, torch.full((3,), 4 / 8))


@every_plan
def test_a_transform_of_the_first_state_reaches_its_gradient_where_a_step_uses_it_twice(plan):
    w, grads = leaf(3), []
    chain = CheckpointedChain(
        lambda x, i: torch.sin(w * x) + x, M, plan=plan, grad_transform=lambda i, g: g / 2
    )
    for run in (chain, lambda x: chain.trajectory(x)[-1]):
        x = torch.ones(3, requires_grad=True)
        grads.append(torch.autograd.grad(run(x).sum(), x)[0])

    torch.testing.assert_close(grads[0], grads[1])


def test_cotangents_can_be_seen_and_changed_at_every_node():
    w = torch.tensor(1.5, requires_grad=True)
    x = torch.tensor(2.0, requires_grad=True)
    seen = {}

    def halve(i, g):
        seen[i] = g.clone()
        return g / 2

    CheckpointedChain(lambda x, i: w * x, 3, grad_transform=halve)(x).backward()

    # dx: 1 -> w/2 at node 2 -> w^2/4 at node 1 -> w^3/8 at node 0
    assert [seen[i].item() for i in (2, 1, 0)] == [1.5, 1.5**2 / 2, 1.5**3 / 4]
    assert x.grad.item() == 1.5**3 / 8
    # dw: the state that enters each step, times the cotangent that leaves it.
    assert w.grad.item() == 2 * 1.5**2 + 2 * 1.5 * (1.5 / 2) + 2 * (1.5**2 / 4)


def test_a_second_derivative_through_a_transform_of_cotangents_is_refused():
    w = torch.ones((), requires_grad=True)
    y = CheckpointedChain(lambda x, i: w * x, 3, grad_transform=lambda i, g: g / 2)(torch.ones(()))

    with pytest.raises(ChainError, match="grad_transform"):
        torch.autograd.grad(y, w, create_graph=True)
