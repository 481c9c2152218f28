"""Tensors in containers, big ones too; and big containers cost nothing."""

import collections
import types

import pytest
import torch
from torch import nn

import chainograd.captured.find
import chainograd.captured.search
from chainograd import CheckpointedChain
from chainograd.captured.find import find_captured
from chainograd.errors import CapturedTensorError
from tests.chainograd.captured.held import M, assert_gradients_reach, register, times, weight

CASES = {}
case = register(CASES)


@case
def a_parameter_list():
    ws = nn.ParameterList([weight(), weight()])
    return (lambda x, i: torch.tanh(ws[0] * x + ws[1])), list(ws)


@case
def a_parameter_dict():
    ws = nn.ParameterDict({"a": weight()})
    return (lambda x, i: torch.tanh(ws["a"] * x)), list(ws.values())


@case
def a_deque():
    held = collections.deque([weight()])
    return times(lambda: held[0])


@case
def a_defaultdict():
    w = weight()
    made = collections.defaultdict(lambda: w)
    return (lambda x, i: torch.tanh(made[i] * x)), [w]


@case
def a_chain_map():
    held = collections.ChainMap({}, {"w": weight()})
    return times(lambda: held["w"])


class Named(dict):
    """A dict with attributes."""


@case
def an_attribute_of_a_dict():
    held = Named(a=1)
    held.w = weight()
    return times(lambda: held.w)


@case
def a_key_of_a_dict():
    held = {weight(): 1}
    return times(lambda: next(iter(held)))


@case
def a_namespace():
    held = types.SimpleNamespace(w=weight())
    return times(lambda: held.w)


@case
def a_mapping_proxy():
    held = types.MappingProxyType({"w": weight()})
    return times(lambda: held["w"])


@case
def a_big_dict_of_tensors():
    held = {f"w{k}": weight() for k in range(1000)}
    return (lambda x, i: torch.tanh(held[f"w{i + 300}"] * x)), [
        held[f"w{i + 300}"] for i in range(M)
    ]


@case
def the_last_of_a_big_ordered_dict():
    held = collections.OrderedDict(enumerate(["a cat"] * 2000))
    held[2000] = weight()
    return times(lambda: held[2000])


@case
def a_big_mapping_proxy():
    held = types.MappingProxyType({k: weight() for k in range(100)})
    return times(lambda: held[50])


@case
def a_key_of_a_big_dict():
    held = {weight(): k for k in range(100)}
    return times(lambda: next(iter(held)))


@case
def a_tensor_beside_many_strings():
    held = {"a": ["a cat"] * 100_000, "w": weight()}
    return times(lambda: held["w"])


@case
def a_tensor_among_a_thousand_strings():
    held = ["a cat"] * 500 + [weight()] + ["a cat"] * 500
    return times(lambda: held[500])


@case
def one_trainable_tensor_among_many_frozen_ones():
    held = {k: torch.ones(1, requires_grad=k == 1500) for k in range(3000)}
    return times(lambda: held[1500])


@case
def a_tensor_each_in_many_functions():
    ws = [weight() for _ in range(200)]
    held = [lambda x, w=w: torch.tanh(w * x) for w in ws]
    return (lambda x, i: held[i + 100](x)), ws[100 : 100 + M]


@case
def a_tensor_in_every_record_but_the_first_ones():
    held = [{"w": weight()} if k > 50 else {"text": "a cat"} for k in range(200)]
    return times(lambda: held[150]["w"])


@case
def many_lists_of_tensors():
    held = [[weight() for _ in range(100)] for _ in range(100)]
    return times(lambda: held[50][50])


@case
def many_tensors_in_a_deque():
    held = collections.deque((k, weight()) for k in range(2000))
    return times(lambda: held[1000][1])


@pytest.mark.parametrize("known", [True, False], ids=["from x", "not from x"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_what_a_container_holds(name, known):
    assert_gradients_reach(CASES[name], known)


@pytest.mark.parametrize("known", [True, False], ids=["from x", "not from x"])
def test_one_record_of_many_that_holds_a_tensor_is_refused_and_not_left_out(known):
    w = weight()
    held = [{"text": "a cat"} for _ in range(1000)]
    held[501]["w"] = w
    step = lambda x, i: torch.tanh(held[501]["w"] * x)  # noqa: E731
    x = torch.randn(4, 8, requires_grad=known)

    assert find_captured(step).tensors == []  # by note [Big containers], 1
    with pytest.raises(CapturedTensorError, match="params="):
        CheckpointedChain(step, M)(x).sum().backward()
    CheckpointedChain(step, M, params=[w])(x).sum().backward()
    assert w.grad is not None


class Trainer:
    """Holds captions besides its network."""

    def __init__(self, captions):
        self.net, self.captions = nn.Linear(8, 8), captions

    def step(self, x, i):
        return self.net(x)


class Caption:
    """An object a caption, with the network at hand."""

    def __init__(self, k, net):
        self.text, self.box, self.net = f"cat {k}", [k, k, k], net


def record(k):
    return {"id": k, "text": f"cat {k}", "box": [k, k, k], "tags": ("a", "b")}


SHAPES = {
    "strings": lambda n, net: [f"cat {k}" for k in range(n)],
    "dicts": lambda n, net: [record(k) for k in range(n)],
    "a dict of dicts": lambda n, net: {k: record(k) for k in range(n)},
    "lists": lambda n, net: [[f"cat {k}"] * 100 for k in range(n // 100)],
    "long lists": lambda n, net: [[f"cat {k}"] * (n // 10) for k in range(10)],
    "objects": lambda n, net: [Caption(k, net) for k in range(n)],
    "a tuple": lambda n, net: tuple(record(k) for k in range(n)),
    "a set": lambda n, net: {f"cat {k}" for k in range(n)},
    "a deque": lambda n, net: collections.deque((k, "a cat") for k in range(n)),
    "tensors": lambda n, net: list(torch.zeros(n).unbind()),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_search_does_not_walk_through_a_data_set(shape, monkeypatch):
    searches = []

    class Search(chainograd.captured.search.Search):
        def __init__(self):
            super().__init__()
            searches.append(self)

    monkeypatch.setattr(chainograd.captured.find, "Search", Search)

    def looks(n):
        trainer = Trainer([])
        trainer.captions = SHAPES[shape](n, trainer.net)
        found = find_captured(trainer.step).tensors
        assert {id(t) for t in found} == {id(t) for t in trainer.net.parameters()}
        return len(searches[-1].seen)

    assert looks(100_000) <= looks(0) + 200
