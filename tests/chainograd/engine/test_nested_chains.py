"""Chains beside each other, inside each other and in threads."""

import threading

import pytest
import torch

from chainograd import CheckpointedChain, binomial, keep_last
from tests.problems import Net, Noisy, plain

M = 5
PLANS = {"nodes": "nodes", "graph": "graph", "last 2": keep_last(M, 2),
         "1 slot": binomial(M, slots=1), "2 slots": binomial(M, slots=2)}  # fmt: skip


def same(gradients, plan, rtol=0.0):
    torch.manual_seed(4)
    expected = gradients(lambda step: lambda *args: plain(step, M, *args))
    torch.manual_seed(4)
    got = gradients(lambda step: CheckpointedChain(step, M, plan=plan))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("kind", [Net, Noisy])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_two_chains_of_one_network_in_one_loss(plan, kind):
    net = kind(4, torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def gradients(run):
        a = run(net)(x)
        b = run(net)(x.detach() * 2)
        return torch.autograd.grad((a * b).sum(), (x, net.w, net.b))

    # Each chain sums its own uses of a parameter first; the loop adds them all up in one row.
    same(gradients, plan, rtol=1e-13)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_chain_that_begins_where_another_ends(plan):
    net = Noisy(4, torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def gradients(run):
        return torch.autograd.grad(run(net)(run(net)(x)).square().sum(), (x, net.w))

    same(gradients, plan, rtol=1e-13)


@pytest.mark.parametrize("first", [0, 1])
def test_losses_of_two_chains_go_back_in_either_order(first):
    net = Noisy(4, torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)

    def gradients(run):
        losses = [run(net)(x).sum(), run(net)(x + 1).square().sum()]
        grads = {i: torch.autograd.grad(losses[i], net.w)[0] for i in (first, 1 - first)}
        return [grads[0], grads[1], torch.rand(2)]

    same(gradients, "nodes")


@pytest.mark.parametrize("kind", [Net, Noisy])
@pytest.mark.parametrize("inner", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("outer", PLANS.values(), ids=PLANS)
def test_a_chain_inside_a_step_of_another(outer, inner, kind):
    net = kind(4, torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def gradients(run, steps):
        torch.manual_seed(4)
        y = run(lambda x, i: net(steps(x), i))(x)
        return [*torch.autograd.grad(y.square().sum(), (x, net.w, net.b)), torch.rand(2)]

    expected = gradients(lambda step: lambda x: plain(step, M, x), lambda x: plain(net, M, x))
    got = gradients(
        lambda step: CheckpointedChain(step, M, plan=outer), CheckpointedChain(net, M, plan=inner)
    )
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("hooked", [False, True])
def test_a_chain_inside_another_passes_gradients_to_a_captured_tensor_with_a_graph(hooked):
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    h = w if hooked else torch.sin(w)
    calls = []
    if hooked:
        w.register_hook(lambda g: calls.append(1) or 3 * g)
    x = torch.randn(3, 4, dtype=torch.float64)

    def step(x, i):
        return torch.tanh(x * h)

    def gradient(run, steps):
        w.grad = None
        y = run(lambda x, i: step(steps(x), i))(x)
        y.sum().backward(retain_graph=True)
        return w.grad

    expected = gradient(lambda s: lambda x: plain(s, M, x), lambda x: plain(step, M, x))
    calls.clear()
    got = gradient(lambda s: CheckpointedChain(s, M), CheckpointedChain(step, M))

    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    assert len(calls) == hooked


def test_threads_do_not_disturb_each_other():
    net = Net(6, torch.float64)
    plans = [*PLANS.values(), keep_last(M, 3)]

    def gradients(k):
        generator = torch.Generator().manual_seed(k)

        def step(x, i):
            return net(x, i) + 0.1 * torch.randn(3, 6, dtype=torch.float64, generator=generator)

        x = torch.full((3, 6), 0.1 * k, dtype=torch.float64, requires_grad=True)
        y = CheckpointedChain(step, M, plan=plans[k], generators=[generator])(x)
        return torch.autograd.grad(y.square().sum(), (x, net.w))

    alone = [gradients(k) for k in range(len(plans))]
    for _ in range(5):
        together = [None] * len(plans)
        barrier = threading.Barrier(len(plans))

        def work(k, together=together, barrier=barrier):
            barrier.wait()
            together[k] = gradients(k)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(len(plans))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for a, b in zip(together, alone, strict=True):
            assert all(map(torch.equal, a, b))
