"""Numbers that are not finite, and gradients that die: named with their step."""

import math

import torch

from tests.chainograd.preflight.provoked import only


def test_the_first_state_that_is_not_finite_is_named(net):
    x = torch.randn(4, 8)
    x[0, 0] = math.nan

    def step(x, i):
        return {"x": torch.log(x["x"]) if i == 1 else net(x["x"], i)}

    finding = only(step, {"x": torch.randn(4, 8)})

    assert (finding.kind, finding.step) == ("not finite", 1)
    assert "['x']" in finding.text
    assert "`x` is not finite in 1 of 32 numbers" in only(net, x).text


def test_a_cotangent_that_is_not_finite_is_named_with_its_step(net):
    def step(x, i):
        return torch.sqrt(torch.relu(x) * 0) + net(x, i) if i == 1 else net(x, i)

    finding = only(step)

    assert (finding.kind, finding.step) == ("not finite", 1)
    assert "epsilon" in finding.text


def test_a_loss_whose_gradient_is_zero_or_not_finite_is_blamed_on_no_step(net):
    infinite = only(net, loss=lambda x: torch.sqrt((0 * x).sum()))
    zero = only(net, loss=lambda x: (x.clamp(-9, 9) * 0).sum())

    assert (infinite.kind, infinite.step) == ("not finite", None)
    assert (zero.kind, zero.step) == ("gradient dies", None)
    assert "The gradient of the loss" in zero.text


def test_a_gradient_that_dies_is_named_with_its_step(net):
    def step(x, i):
        return net(x.clamp(7, 8) if i == 2 else x, i)

    finding = only(step, torch.randn(4, 8, requires_grad=True))

    assert (finding.kind, finding.step) == ("gradient dies", 2)
    assert "clamp" in finding.text
