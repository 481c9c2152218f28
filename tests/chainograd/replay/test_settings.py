"""Torch's global settings, autocast above all: a rerun sees those of the forward pass."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from chainograd import CheckpointedChain
from tests.problems import M, every_plan, leaf, plain, ramp, same_gradients


class Sine(torch.nn.Module):
    def forward(self, w):
        return torch.sin(w)


@every_plan
@pytest.mark.parametrize("backward_inside", [True, False])
def test_cached_parametrizations_are_made_anew_for_every_step(plan, backward_inside):
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 4).double()
    parametrize.register_parametrization(net, "weight", Sine())
    x = torch.ones(2, 4).double()

    def step(x, i):
        return torch.tanh(net(x))

    expected = torch.autograd.grad(plain(step, M, x).sum(), list(net.parameters()))
    with parametrize.cached():
        loss = CheckpointedChain(step, M, plan=plan)(x).sum()
        if backward_inside:
            got = torch.autograd.grad(loss, list(net.parameters()))
    if not backward_inside:
        got = torch.autograd.grad(loss, list(net.parameters()))
    assert all(map(torch.equal, got, expected))


@every_plan
def test_autocast_inside_a_step_adds_up_gradients_in_full_precision(plan):
    # Autocast caches its cast of a leaf and would add up the gradients of all uses in bfloat16. In
    # the loop neither the state nor a computed argument is a leaf.
    first, second = torch.randn(2, 8, 8)
    x, c = torch.randn(2, 4, 8).unbind()

    def step(x, i, c):
        with torch.autocast("cpu", torch.bfloat16):
            both = [(t @ first).float() + (t @ second).float() * t for t in (x, c)]
        return x + torch.tanh(sum(both))

    def gradients(run):
        x_T, given = x.clone().requires_grad_(), c.clone().requires_grad_()
        return torch.autograd.grad(run(x_T * 1, given * 1).square().sum(), (x_T, given))

    expected = gradients(lambda x, c: plain(lambda x, i: step(x, i, c), M, x))
    assert all(map(torch.equal, gradients(CheckpointedChain(step, M, plan=plan)), expected))


@every_plan
def test_arguments_made_in_inference_mode_are_accepted(plan):
    w = ramp()
    with torch.inference_mode():
        c = torch.ones(4).double()

    def step(x, i, c):
        return torch.sin(x * w) + c

    x = torch.ones(4).double()
    got = torch.autograd.grad(CheckpointedChain(step, M, plan=plan)(x, c).sum(), w)
    assert torch.equal(got[0], torch.autograd.grad(plain(step, M, x, c).sum(), w)[0])


class Product(torch.autograd.Function):
    """A product whose derivative multiplies too, as autocast sees."""

    @staticmethod
    def forward(ctx, x, w):
        """Multiply."""
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, g):
        """Multiply back."""
        x, w = (t.float() for t in ctx.saved_tensors)
        return g.float() @ w.t(), x.t() @ g.float()


@every_plan
@pytest.mark.parametrize("around", ["forward", "backward"])
def test_gradients_are_computed_under_the_autocast_of_the_backward_pass(around, plan):
    w, x = leaf(8, 8), leaf(4, 8)
    regions = [torch.autocast("cpu", torch.bfloat16, enabled=around == half, cache_enabled=False)
               for half in ("forward", "backward")]  # fmt: skip

    def outcome(run):
        with regions[0]:
            loss = run(x).square().sum()
        with regions[1]:
            return [loss, *torch.autograd.grad(loss, [w, x])]

    def step(x, i):
        return torch.tanh(Product.apply(x, w).float())

    expected = outcome(lambda x: plain(step, M, x))
    assert all(map(torch.equal, outcome(CheckpointedChain(step, M, plan=plan)), expected))


@every_plan
def test_casts_of_autocast_are_not_shared_by_steps(plan):
    net, x = nn.Linear(8, 8), leaf(4, 8)

    def step(x, i):
        # Inside of another region it does not clear its cache in the end.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
            return torch.tanh(net(x))

    def loop(step, M, x):
        for i in range(M):
            torch.clear_autocast_cache()
            x = step(x, i)
        return x

    with torch.autocast("cpu", torch.bfloat16):
        same_gradients(step, [x, net.weight, net.bias], plan, loop)


@every_plan
def test_a_rerun_sees_the_torch_settings_of_the_forward_pass(plan):
    w, x = (leaf(4).double().detach().requires_grad_() for _ in range(2))

    def step(x, i):
        return torch.sin(w * x * torch.linspace(0.1, 0.7, 4))

    def outcome(run):
        torch.set_default_dtype(torch.float64)
        try:
            y = run(x)
        finally:
            torch.set_default_dtype(torch.float32)
        return torch.autograd.grad(y.sum(), [w, x])

    expected = outcome(lambda x: plain(step, M, x))
    assert all(map(torch.equal, outcome(CheckpointedChain(step, M, plan=plan)), expected))
    assert torch.get_default_dtype() is torch.float32


def test_autocast_in_the_first_run_is_autocast_in_the_rerun():
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
    x = torch.randn(4, 8)

    def step(x, i):
        return x + net(x).float()

    def run(loop):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            y = loop()
        y.square().sum().backward()
        return [y, *(p.grad for p in net.parameters())]

    expected = run(lambda: plain(step, 5, x))
    assert all(map(torch.equal, run(lambda: CheckpointedChain(step, 5)(x)), expected))


def test_a_weight_cast_before_without_a_graph_still_gets_its_gradient():
    net = torch.nn.Linear(8, 8)
    x = torch.randn(4, 8)

    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            net(x)
        CheckpointedChain(lambda x, i: net(x).float(), 3)(x).sum().backward()

    assert net.weight.grad is not None
    assert net.weight.grad.abs().max() > 0
