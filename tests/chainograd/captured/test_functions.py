"""Tensors that methods, decorated, partial and compiled functions lead to."""

import functools

import pytest
import torch
from torch import nn

from tests.chainograd.captured.held import (
    around,
    assert_gradients_reach,
    kept_elsewhere,
    layers,
    register,
    weight,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")  # is deprecated, says torch
CASES = {}
case = register(CASES)


class Config:
    w = weight()


LATE = {"w": weight()}


class Calls:
    def _run(self, w, x, i):
        return torch.tanh(w * x)

    run = functools.partialmethod(_run, Config.w)

    @functools.cached_property
    def late(self):
        return LATE["w"]

    def method(self, x, i):
        return self.helper(x)

    def helper(self, x):
        return torch.tanh(LATE["w"] * x)


@case
def a_partial_method():
    held = Calls()
    return (lambda x, i: held.run(x, i)), [Config.w]


@case
def a_cached_property_that_names_a_global():
    held = Calls()
    return (lambda x, i: torch.tanh(held.late * x)), [LATE["w"]]


@case
def a_method_that_a_bound_method_calls():
    return Calls().method, [LATE["w"]]


class Partial(functools.partial):
    pass


@case
def a_kind_of_partial():
    w = weight()
    return Partial(lambda w, x, i: torch.tanh(w * x), w), [w]


@case
def a_method_of_a_tensor():
    w = weight()
    times_w = w.mul
    return (lambda x, i: torch.tanh(times_w(x))), [w]


@case
def an_attribute_of_a_function():
    def step(x, i):
        return torch.tanh(step.w * x)

    step.w = weight()
    return step, [step.w]


def scaled(forward, w):
    @functools.wraps(forward)
    def scale(*args):
        return w * forward(*args)

    return scale


@case
def a_decorated_forward():
    net, w = nn.Linear(8, 8), weight()
    net.forward = scaled(net.forward, w)
    return (lambda x, i: torch.tanh(net(x))), [w, *net.parameters()]


def globally_scaled(forward):
    @functools.wraps(forward)
    def scale(*args):
        return LATE["w"] * forward(*args)

    return scale


@case
def a_decorated_forward_that_names_a_global():
    net = nn.Linear(8, 8)
    net.forward = globally_scaled(net.forward)
    return (lambda x, i: torch.tanh(net(x))), [LATE["w"], *net.parameters()]


class Decorated(nn.Linear):
    forward = scaled(nn.Linear.forward, Config.w)


@case
def a_decorated_forward_of_a_class():
    net = Decorated(8, 8)
    return (lambda x, i: torch.tanh(net(x))), [Config.w, *net.parameters()]


@case
def a_decorated_call():
    class Step:
        __call__ = torch.enable_grad()(lambda self, x, i: torch.tanh(LATE["w"] * x))

    return Step(), [LATE["w"]]


@case
def a_call_that_is_inherited():
    class Base:
        def __call__(self, x, i):
            return torch.tanh(LATE["w"] * x)

    class Step(Base):
        pass

    return Step(), [LATE["w"]]


@case
def a_forward_under_autocast_that_hides_its_module():
    net = kept_elsewhere(layers())
    forward = torch.autocast("cpu", enabled=False)(net.forward)
    return (lambda x, i: forward(x)), list(net.parameters())


@case
def a_graph_module():
    return around(torch.fx.symbolic_trace(layers()))


@case
def an_exported_module():
    return around(torch.export.export(layers(), (torch.randn(4, 8),)).module())


@case
def parameters_of_a_functional_call():
    net = layers()
    held = {name: torch.randn_like(p).requires_grad_() for name, p in net.named_parameters()}
    return (lambda x, i: torch.func.functional_call(net, held, (x,))), list(held.values())


@case
def a_compiled_function():
    w = weight()
    f = torch.compile(lambda x: torch.tanh(w * x), backend="eager")
    return (lambda x, i: f(x)), [w]


@case
def a_compiled_method_that_hides_its_module():
    net = kept_elsewhere(layers())
    forward = torch.compile(net.forward, backend="eager")
    return (lambda x, i: forward(x)), list(net.parameters())


@case
def a_module_compiled_in_place():
    net = layers()
    net.compile(backend="eager")
    return around(net)


@case
def a_compiled_module():
    return around(torch.compile(layers(), backend="eager"))


@pytest.mark.parametrize("known", [True, False], ids=["from x", "not from x"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_what_a_function_leads_to(name, known):
    assert_gradients_reach(CASES[name], known)
