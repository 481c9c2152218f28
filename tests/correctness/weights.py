"""Weights that are adapted, shared, frozen or changed between the two passes."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn

from tests.correctness.case import M, Values, case, gradients, grads_of, leaf, square
from tests.correctness.ways import Way

SUMS = (
    "The chain adds a sampler's gradient of a weight as one sum to the gradient of the loss or of"
    " another sampler; the loop adds step by step."
)
CHANGED = "The gradient needs a value that was overwritten."


class LoRA(nn.Module):
    """A frozen linear layer with a trained update of low rank, which can be switched off."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.enabled = True

    def forward(self, x):
        """Add the update."""
        return self.base(x) + (self.up(self.down(x)) if self.enabled else 0)


@case()
def lora(run: Way) -> Values:
    """A frozen layer with a trained low-rank update; the state needs no gradient."""
    net, x = LoRA(), torch.randn(4, 8)
    return gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net)


@case("peft#2826", expected="raises", why="The step has changed when it runs again.")
def an_adapter_that_is_off_during_the_forward_pass_only(run: Way) -> Values:
    """LoRA is disabled around the sampler's call and enabled again before `backward()`."""
    net, x = LoRA(), leaf(4, 8)
    net.enabled = False
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    net.enabled = True
    return gradients(square(y), x=x)


@case(slow=True, needs="peft")
def lora_of_peft(run: Way) -> Values:
    """`peft.get_peft_model` with LoRA and its dropout."""
    from peft import LoraConfig, get_peft_model

    net = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))
    config = LoraConfig(r=2, target_modules=["0", "2"], lora_dropout=0.1, init_lora_weights=False)
    model, x = get_peft_model(net, config), torch.randn(4, 8)
    y = run(lambda x, i: torch.tanh(model(x)), M, x)
    return gradients(square(y), net=model)


@case(expected="raises", why="A rerun would receive a state that was changed already.")
def a_state_changed_in_place(run: Way) -> Values:
    """`x.mul_(0.9)` on a step's input; the first state needs no gradient."""
    net, x = nn.Linear(4, 4), torch.randn(3, 4)

    def step(x, i):
        x.mul_(0.9)
        return net(torch.sin(x))

    return gradients(square(run(step, M, x)), net=net)


@case(expected="raises (as the loop)")
def a_state_that_learns_changed_in_place(run: Way) -> Values:
    """`x += …` on a leaf that requires a gradient."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        x += torch.tanh(net(x))
        return x

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def a_result_changed_in_place(run: Way) -> Values:
    """In-place operations on the step's own results."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        y = net(x)
        y.mul_(1.1).add_(0.1).sigmoid_()
        y = 2 * y
        y[:, 0] = y[:, 0] * 2
        return y

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def a_final_state_changed_in_place(run: Way) -> Values:
    """The loss changes the sample in place, as a postprocessing does."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: net(x), M, x)
    y.clamp_(-1, 1).mul_(2)
    return gradients(square(y), net=net, x=x)


@case(expected="raises (as the loop)", why=CHANGED)
def a_weight_changed_before_backward(run: Way) -> Values:
    """An optimizer's step between the sampler and `backward()`."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    with torch.no_grad():
        net.weight.mul_(1.1)
    return gradients(square(y), net=net, x=x)


@case("VADER#9")
def a_weight_frozen_before_backward(run: Way) -> Values:
    """`requires_grad_(False)` on part of the network between the sampler and `backward()`."""
    net, other, x = nn.Linear(4, 4), nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(net(x) + other(x)), M, x)
    other.requires_grad_(False)
    return gradients(square(y), net=net, other=other, x=x)


@case(expected="raises", why="The weights require a gradient when the steps run again.")
def a_network_frozen_for_the_sampler_only(run: Way) -> Values:
    """Weights require no gradients in the sampler, and require them again before `backward()`."""
    net, x = nn.Linear(4, 4).requires_grad_(False), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    net.requires_grad_(True)
    return gradients(square(y), net=net, x=x)


@case(expected="right*", why=SUMS)
def weights_shared_with_the_loss(run: Way) -> Values:
    """The loss uses the network that the steps use."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    return gradients(square(net(y)), net=net, x=x)


@case(expected="right*", why=SUMS)
def two_samplers_of_one_network(run: Way) -> Values:
    """Two samplers use one network in every step, and one loss sees both samples."""
    net, x, z = nn.Linear(4, 4), leaf(3, 4), leaf(3, 4)
    sampler = run.sampler(lambda x, i: torch.tanh(net(x) + i / 10), M)
    return gradients(square(sampler(x)) + square(sampler(z)), net=net, x=x, z=z)


@case()
def accumulated_gradients(run: Way) -> Values:
    """Two backward passes before the gradients are read."""
    net, x, z = nn.Linear(4, 4), leaf(3, 4), leaf(3, 4)
    sampler = run.sampler(lambda x, i: torch.tanh(net(x) + i / 10), M)
    square(sampler(x)).backward()
    square(sampler(z)).backward()
    return grads_of(net=net, x=x, z=z)


@case("pytorch#71398, #43672")
def a_copied_model(run: Way) -> Values:
    """`copy.deepcopy` of a module that holds the sampler: the copy's weights get the gradient."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = _Step()
            self.sampler = run.sampler(self.net, M)

        def forward(self, x):
            return self.sampler(x)

    model, x = Model(), leaf(3, 4)
    copied = copy.deepcopy(model)
    values = gradients(square(copied(x)), copied=copied.net, x=x)
    return {**values, **grads_of(model=model.net)}


class _Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, i):
        return torch.tanh(self.layer(x) + i / 10)


@case()
def weights_made_by_another_network(run: Way) -> Values:
    """`torch.func.functional_call` with weights that a hypernetwork computes."""
    net, hyper, x = nn.Linear(4, 4), nn.Linear(3, 16), leaf(3, 4)
    weight = hyper(torch.randn(3)).view(4, 4)

    def step(x, i, weight):
        return torch.tanh(torch.func.functional_call(net, {"weight": weight}, x))

    return gradients(square(run(step, M, x, weight)), bias=net.bias, hyper=hyper, x=x)


@case()
def a_gradient_with_retain_graph(run: Way) -> Values:
    """Two losses of one sample, `retain_graph=True` at the first."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    square(y).backward(retain_graph=True)
    y.sum().backward()
    return grads_of(net=net, x=x)


@case(expected="raises", why=CHANGED)
def averaged_weights_for_the_sampler_only(run: Way) -> Values:
    """Averaged weights are swapped in through `.data` for sampling, and out before `backward()`."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    own = [p.data for p in net.parameters()]
    for p in net.parameters():
        p.data = 0.9 * p.data
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    for p, data in zip(net.parameters(), own, strict=True):
        p.data = data
    return gradients(square(y), net=net, x=x)


@case("VADER#9")
def weights_that_steps_freeze(run: Way) -> Values:
    """A step sets `requires_grad` by its index: only some steps train the network."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        net.requires_grad_(i >= 2)
        return torch.tanh(net(x))

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def a_weight_of_its_own_for_each_step(run: Way) -> Values:
    """`nn.ParameterList`: a step uses the entry at its index; one entry is never used."""
    shifts, net, x = nn.ParameterList(leaf(4) for _ in range(M + 1)), nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(net(x) + shifts[i]), M, x)
    return gradients(square(y), shifts=shifts, net=net, x=x)


@case()
def trained_times(run: Way) -> Values:
    """The time grid is a trained tensor; a step reads two of its entries."""
    times, net, x = leaf(M + 1), nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        return x + (times[i + 1] - times[i]) * torch.tanh(net(x) * times[i].exp())

    return gradients(square(run(step, M, x)), times=times, net=net, x=x)


@case(expected="raises", why="Nothing shows what an iterator holds; `params=[w]` names the weight.")
def a_weight_that_nothing_finds(run: Way) -> Values:
    """A step takes its weight from an `itertools.repeat`; the state needs no gradient."""
    w, head, x = leaf(4, 4), nn.Linear(4, 1), torch.randn(3, 4)
    hidden = itertools.repeat(w)
    y = run(lambda x, i: torch.tanh(x @ next(hidden)), M, x)
    return gradients(square(head(y)), w=w, head=head)


@case()
def a_weight_that_is_named(run: Way) -> Values:
    """The same weight, named by `params=[w]`."""
    w, head, x = leaf(4, 4), nn.Linear(4, 1), torch.randn(3, 4)
    hidden = itertools.repeat(w)
    y = run(lambda x, i: torch.tanh(x @ next(hidden)), M, x, params=[w])
    return gradients(square(head(y)), w=w, head=head)


@case(expected="raises", why="The step has changed when it runs again.")
def a_weight_exchanged_for_a_constant(run: Way) -> Values:
    """An attribute is replaced by its `detach()` between the sampler and `backward()`."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    held = {"shift": leaf(4)}
    shift = held["shift"]
    y = run(lambda x, i: torch.tanh(net(x) + held["shift"]), M, x)
    held["shift"] = held["shift"].detach()
    return gradients(square(y), net=net, x=x, shift=shift)


@case(expected="raises", why="The step has changed when it runs again.")
def a_stopped_gradient_that_comes_late(run: Way) -> Values:
    """A flag that detaches a branch is set between the sampler and `backward()`."""
    net, x, flags = nn.Linear(4, 4), leaf(3, 4), {"stop": False}

    def step(x, i):
        h = torch.tanh(net(x))
        return 0.5 * x + (h.detach() if flags["stop"] else h)

    y = run(step, M, x)
    flags["stop"] = True
    return gradients(square(y), net=net, x=x)


@case(expected="raises", why="The steps find another weight when they run again.")
def a_weight_exchanged_for_another(run: Way) -> Values:
    """Before `backward()`, the weight is replaced by a new `nn.Parameter` with the same values."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    old = net.weight
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    net.weight = nn.Parameter(old.detach().clone())
    return gradients(square(y), old=old, net=net, x=x)
