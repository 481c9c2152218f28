"""Gradients turned off or cut off, in a step and in the loss: named with their line."""

import itertools

import pytest
import torch

from tests.chainograd.preflight.provoked import M, kinds, line, only


def test_a_no_grad_block_that_the_outcome_depends_on_is_named_with_its_line(net):
    def step(x, i):
        with torch.no_grad():  # a block
            return net(x, i)

    finding = only(step)

    assert (finding.kind, finding.step, finding.where) == ("gradients off", 0, line("a block"))
    assert "decorator" in finding.text


def test_a_decorated_step_is_named_with_the_line_of_its_decorator(net):
    @torch.no_grad()  # a decorator
    def step(x, i):
        return net(x, i)

    assert only(step).where == line("a decorator")


def test_a_decorated_function_is_named_with_the_line_that_calls_it(net):
    pipeline = torch.no_grad()(net.forward)

    def step(x, i):
        return pipeline(x, i)  # a call

    finding = only(step)

    assert (finding.kind, finding.where) == ("gradients off", line("a call"))


def test_inference_mode_in_a_step_is_gradients_turned_off(net):
    def step(x, i):
        with torch.inference_mode():
            y = x + 1
            return torch.tanh(y @ net.w)  # in inference mode

    finding = only(step)

    assert (finding.kind, finding.where) == ("gradients off", line("in inference mode"))


def test_a_part_without_gradients_is_a_finding_to_look_at(net):
    def step(x, i):
        with torch.no_grad():  # a part
            guidance = net(x, i)
        return net(x, i) + guidance

    finding = only(step)

    assert (finding.kind, finding.where) == ("partly detached", line("a part"))
    assert "If that is not meant" in finding.text


def test_what_is_computed_without_gradients_and_not_used_is_no_finding(net):
    seen = []

    def step(x, i):
        y = net(x, i)
        with torch.no_grad():
            seen.append(y.square().mean().item())
            mask = torch.zeros_like(y)
        seen.append(y.detach().abs().max().item())
        return y + mask

    assert kinds(step) == []


@pytest.mark.parametrize(
    "cut",
    [
        lambda y: y.detach(),
        lambda y: y.data,
        lambda y: torch.from_numpy(y.detach().numpy()),
        lambda y: torch.tensor(y.tolist()),
        lambda y: torch.autograd.grad(y.square().sum(), y)[0],
    ],
    ids=["detach", "data", "numpy", "tolist", "grad"],
)
def test_a_step_that_detaches_its_outcome_is_named(cut, net):
    def step(x, i):
        with torch.enable_grad():  # for the last of the cuts, in a rerun too
            return torch.tanh(cut(net(x, i)))

    finding = only(step)

    assert (finding.kind, finding.step) == ("detached", 0)
    assert finding.where.startswith(f"{__file__}:")


def test_a_detached_input_leaves_no_way_through_a_step(net):
    def step(x, i):
        return net(x.detach(), i)  # an input

    finding = only(step)

    assert (finding.kind, finding.step, finding.where) == ("detached", M - 1, line("an input"))
    assert "grad_steps=1" in finding.text


def test_a_step_that_does_not_use_its_state_has_no_way_through(net):
    assert only(lambda x, i: net.b.expand(4, 8) * (i + 1)).kind == "no gradient"


def test_a_detached_part_is_a_finding_to_look_at(net):
    def step(x, i):
        return net(x, i) / x.detach().abs().max()  # a scale

    finding = only(step)

    assert (finding.kind, finding.where) == ("partly detached", line("a scale"))


def test_a_detached_leaf_of_the_state_is_a_finding_to_look_at(net):
    def step(state, i):
        x, previous = state
        e = net(x, i)
        return e + 0.5 * previous, e.detach()  # a history

    finding = only(step, (torch.randn(4, 8), torch.zeros(4, 8)))

    assert (finding.kind, finding.where) == ("partly detached", line("a history"))


def test_a_number_taken_out_of_a_tensor_is_a_finding_to_look_at(net):
    def step(x, i):
        return net(x, i) / x.std().item()  # a number

    finding = only(step, torch.randn(4, 8, requires_grad=True))

    assert (finding.kind, finding.where) == ("partly detached", line("a number"))
    assert "only looked at" in finding.text


def test_a_parameter_that_no_gradient_reaches_is_named():
    w = torch.ones(8, requires_grad=True)

    finding = only(lambda x, i: w * x if i == 5 else 0.9 * x)

    assert finding.kind == "no gradient"
    assert "other step" in finding.text


def test_a_loss_under_no_grad_is_named_with_its_line(net):
    def loss(x):
        with torch.no_grad():  # a decoder
            image = x * 2
        return image.mean()

    finding = only(net, loss=loss)

    assert (finding.kind, finding.step, finding.where) == ("gradients off", None, line("a decoder"))


def test_a_detached_decode_is_named_with_its_line(net):
    finding = only(net, loss=lambda x: (2 * x.detach()).mean())

    assert finding.kind == "detached"
    assert "The loss" in finding.text


def test_a_loss_that_is_a_number_has_no_gradient(net):
    assert only(net, loss=lambda x: x.sum().item()).kind == "detached"
    assert only(net, loss=lambda x: 3.0).kind == "no gradient"


def test_a_partly_detached_loss_is_a_finding_to_look_at(net):
    assert kinds(net, loss=lambda x: (x * x.detach()).sum()) == ["partly detached"]
    assert kinds(net, loss=lambda x: (x / x.std().item()).sum()) == ["partly detached"]


def test_a_loss_that_does_not_depend_on_the_state_is_named(net):
    finding = only(net, loss=lambda x: net.w.square().sum())

    assert finding.kind == "no gradient"
    assert "with respect to the state" in finding.text


def test_a_loss_for_each_sample_is_accepted(net):
    assert kinds(net, loss=lambda x: x.square().mean(1)) == []


def test_a_chain_in_which_nothing_is_trained_is_named(net):
    net.requires_grad_(False)

    assert only(net).kind == "nothing to train"
    assert kinds(net, torch.randn(4, 8, requires_grad=True)) == []
    assert kinds(lambda x, i: net(x.detach(), i)) == ["nothing to train", "detached"]


def test_a_tensor_that_the_chain_cannot_see_is_named_with_the_way_out():
    hidden = itertools.repeat(torch.ones(8, requires_grad=True))
    finding = only(lambda x, i: torch.tanh(next(hidden) * x))

    assert finding.kind == "captured tensor"
    assert "params=[tensor]" in finding.text
