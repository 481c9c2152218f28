"""Tensors in slots, weak references, classes, enumerations and modules of code."""

import contextvars
import dataclasses
import enum
import sys
import types
import weakref

import pytest
import torch

from tests.chainograd.captured.held import (
    assert_gradients_reach,
    kept_elsewhere,
    layers,
    register,
    times,
    weight,
)

CASES = {}
case = register(CASES)


@dataclasses.dataclass(slots=True)
class Slotted:
    """Has no ``__dict__``."""

    w: torch.Tensor


class Referred:
    __slots__ = ("__weakref__", "w")


class Private:
    __slots__ = ("__w",)

    def __init__(self):
        self.__w = weight()

    def __call__(self, x, i):
        return torch.tanh(self.__w * x)


@case
def a_slot():
    held = Slotted(weight())
    return times(lambda: held.w)


@case
def a_private_slot():
    step = Private()
    return step, [step._Private__w]


@case
def a_weak_reference():
    net = layers()
    held = weakref.ref(net)
    return (lambda x, i, keep=[net]: held()(x)), list(net.parameters())


@case
def a_module_that_only_a_weak_reference_leads_to():
    net = kept_elsewhere(layers())
    held = weakref.ref(net)
    return (lambda x, i: held()(x)), list(net.parameters())


@case
def a_weak_proxy():
    net = kept_elsewhere(layers())
    held = weakref.proxy(net)
    return (lambda x, i: held(x)), list(net.parameters())


@case
def a_weak_proxy_of_what_cannot_be_called():
    held = weakref.proxy(kept_elsewhere(Referred()))
    held.w = weight()
    return times(lambda: held.w)


@case
def a_weak_dict():
    net = kept_elsewhere(layers())
    held = weakref.WeakValueDictionary(net=net)
    return (lambda x, i: held["net"](x)), list(net.parameters())


@case
def weak_methods():
    nets = kept_elsewhere([layers() for _ in range(3)])
    held = [weakref.WeakMethod(net.forward) for net in nets]  # which make a method when asked
    parameters = [p for net in nets for p in net.parameters()]
    return (lambda x, i: held[2]()(held[1]()(held[0]()(x)))), parameters


CONTEXT = contextvars.ContextVar("context")


@case
def a_context_variable():
    CONTEXT.set({"w": weight()})
    return times(lambda: CONTEXT.get()["w"])


class Config:
    w = weight()
    numbers = (1, 2)

    @staticmethod
    def shifted(x):
        return x + LATE["w"]

    @property
    def late(self):
        return LATE["w"]


LATE = {"w": weight()}


@case
def a_class():
    return times(lambda: Config.w)


@case
def a_class_in_a_closure():
    class Local(Config):
        pass

    return times(lambda: Local.w)


@case
def a_class_that_an_object_is_of():
    held = Config()
    return times(lambda: held.w)


@case
def a_static_method_that_names_a_global():
    return (lambda x, i: torch.tanh(Config.shifted(x))), [LATE["w"]]


@case
def a_property_that_names_a_global():
    held = Config()
    return (lambda x, i: torch.tanh(held.late * x)), [LATE["w"]]


class Members(enum.Enum):
    A = (weight(),)


@case
def a_member_of_an_enumeration():
    return times(lambda: Members.A.value[0])


@case
def an_enumeration_that_is_iterated_over():
    return times(lambda: next(iter(Members)).value[0])


weights = types.ModuleType("weights_of_a_test")

weights.w = weight()

weights.inner = types.ModuleType("weights_of_a_test.inner")

weights.inner.w = weight()

sys.modules["weights_of_a_test"] = weights


@case
def a_module_of_code():
    return times(lambda: weights.w)


@case
def a_module_of_code_inside_another():
    return times(lambda: weights.inner.w)


@case
def a_module_of_code_that_the_step_imports():
    def get():
        import weights_of_a_test

        return weights_of_a_test.w

    return times(get)


@case
def a_tensor_that_the_step_imports():
    def get():
        from weights_of_a_test import w

        return w

    return times(get)


@case
def a_module_of_code_in_an_object():
    held = types.SimpleNamespace(code=weights)
    return times(lambda: held.code.w)


@pytest.mark.parametrize("known", [True, False], ids=["from x", "not from x"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_what_an_object_is_made_of(name, known):
    assert_gradients_reach(CASES[name], known)
