"""Tensors that a step uses without being handed them: found beforehand, or refused afterwards."""

import gc
import itertools
import linecache
import sys
from linecache import getline

import pytest
import torch
from torch import nn

from chainograd import CapturedTensorError, ChainError, CheckpointedChain
from chainograd.captured.find import find_captured
from tests.problems import M, every_plan, plain, ramp


def test_tensors_that_a_step_captures_get_their_gradients():
    a = torch.tensor(0.7, requires_grad=True)
    box = {"deep": [torch.tensor(0.2, requires_grad=True)]}

    class Holder:
        def __init__(self):
            self.scale = torch.tensor(1.1, requires_grad=True)

        def step(self, x, i):
            return torch.sin(a * x + box["deep"][0]) * self.scale

    holder = Holder()
    leaves = (a, box["deep"][0], holder.scale)
    x = torch.randn(4)
    got = torch.autograd.grad(CheckpointedChain(holder.step, 6)(x).sum(), leaves)

    expected = torch.autograd.grad(plain(holder.step, 6, x).sum(), leaves)
    assert all(map(torch.equal, got, expected))


def test_a_captured_tensor_with_a_graph_of_its_own_passes_its_gradient_on():
    w = torch.randn(4, requires_grad=True)
    x = torch.randn(4)

    def run(loop):
        embedding = torch.sin(w * 3)
        return torch.autograd.grad(loop(lambda x, i: torch.tanh(x + embedding * w)), w)[0]

    expected = run(lambda step: plain(step, 5, x).sum())
    got = run(lambda step: CheckpointedChain(step, 5)(x).sum())

    # The sum over the embedding's path is taken apart from that over w's own: same to rounding.
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


class Hidden:
    tensors = [torch.ones(3, 2, requires_grad=True)]  # noqa: RUF012


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("only", [None, 0])
def test_a_tensor_that_cannot_be_found_is_refused_by_step_and_shape(known, only):
    hide = [lambda: vars(__import__("sys").modules[__name__])["Hid" + "den"]]

    def step(x, i):
        return x * 0.5 if only is not None and i != only else x * hide[0]().tensors[0].sum()

    x = torch.ones(1, requires_grad=known)
    with pytest.raises(CapturedTensorError, match=r"Step \d+ .*\(3, 2\).*params="):
        CheckpointedChain(step, 4)(x).sum().backward()


def test_a_tensor_that_cannot_be_found_is_refused_where_all_that_is_found_is_unused():
    hide = [lambda: vars(__import__("sys").modules[__name__])["Hid" + "den"]]
    unused = [torch.ones(2, requires_grad=True)]

    def step(x, i):
        return x * hide[0]().tensors[0].sum() if i == 3 else x + len(unused)

    with pytest.raises(CapturedTensorError, match=r"Step 3 .*\(3, 2\).*params="):
        CheckpointedChain(step, 4)(torch.ones(1))


def test_a_tensor_that_cannot_be_found_gets_its_gradient_when_it_is_named():
    hidden = vars(__import__("sys").modules[__name__])["Hid" + "den"]
    w = hidden.tensors[0]

    def step(x, i):
        return torch.sin(x * vars(__import__("sys").modules[__name__])["Hid" + "den"].tensors[0])

    got = torch.autograd.grad(CheckpointedChain(step, 4, params=[w])(torch.ones(3, 2)).sum(), w)

    assert torch.equal(got[0], torch.autograd.grad(plain(step, 4, torch.ones(3, 2)).sum(), w)[0])


def test_a_hidden_tensor_with_a_graph_is_refused_where_nothing_else_needs_a_gradient():
    vault = itertools.repeat(torch.sin(torch.ones(5, requires_grad=True)))

    with pytest.raises(CapturedTensorError, match=r"Step 0 .*\(5,\)"):
        CheckpointedChain(lambda x, i: x * next(vault), 3)(torch.ones(5))


def features_kept():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    kept = {}
    net[0].register_forward_hook(lambda module, given, out: kept.update(h=out))
    net.kept = kept
    return net, lambda x, i: x + net(x)


def loss_kept():
    class Trainer:
        def __init__(self):
            self.net, self.loss = nn.Linear(3, 3).double(), None

        def step(self, x, i):
            return x + self.net(x)

    trainer = Trainer()
    return trainer, trainer.step


@pytest.mark.parametrize("made", [features_kept, loss_kept])
@pytest.mark.parametrize("plan", ["nodes", "graph"])
def test_tensors_left_over_from_an_iteration_do_not_stop_the_next(made, plan):
    grads = []
    for chained in (True, False):
        torch.manual_seed(0)
        owner, step = made()
        net = owner if isinstance(owner, nn.Module) else owner.net
        for _ in range(3):
            x = torch.ones(2, 3, dtype=torch.float64)
            y = CheckpointedChain(step, 4, plan=plan)(x) if chained else plain(step, 4, x)
            owner.loss = y.square().sum()
            owner.loss.backward()
        grads.append([p.grad for p in net.parameters()])

    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_results_that_the_object_of_a_step_holds_do_not_pile_up():
    class Holder:
        def __init__(self):
            self.w, self.x = torch.ones(1000, requires_grad=True), None

        def step(self, x, i):
            return self.w * x

    def live():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    holder, counts = Holder(), []
    for _ in range(4):
        holder.x = CheckpointedChain(holder.step, 3)(torch.ones(1000))
        counts.append(live())

    assert counts[1] == counts[3]


def test_what_pythons_own_modules_hold_is_not_searched(monkeypatch):
    w = torch.ones(3, requires_grad=True)
    monkeypatch.setitem(linecache.cache, "odd", [w])
    monkeypatch.setitem(sys.modules, "odd", [w])
    monkeypatch.setattr(linecache, "odd", [w], raising=False)

    def step(x, i):
        return x + len(getline("odd", i)) + len(sys.modules) + len(linecache.odd)

    assert not find_captured(step).tensors


def test_a_module_that_is_an_argument_is_looked_into():
    grads, counts = [], []
    for chained in (True, False):
        torch.manual_seed(0)
        norm, w = nn.BatchNorm1d(3), nn.Linear(3, 3)

        def step(x, i, norm, w=w):
            return torch.tanh(norm(w(x)))

        x = torch.randn(5, 3)
        y = CheckpointedChain(step, 4)(x, norm) if chained else plain(step, 4, x, norm)
        y.square().sum().backward()
        grads.append([norm.weight.grad, w.weight.grad])
        counts.append(int(norm.num_batches_tracked))

    assert counts == [4, 4]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_devices_of_frozen_weights_are_in_use():
    frozen = nn.Linear(2, 2, device="meta").requires_grad_(False)

    assert find_captured(lambda x, i: frozen(x)).devices == {torch.device("meta")}


@every_plan
def test_a_parameter_that_is_named_twice_is_counted_once(plan):
    w, x = ramp(), torch.ones(4).double()

    def step(x, i):
        return torch.sin(w * x)

    y = CheckpointedChain(step, M, plan=plan, params=[w, w])(x)
    expected = torch.autograd.grad(plain(step, M, x).sum(), w)
    assert torch.equal(torch.autograd.grad(y.sum(), w)[0], expected[0])


def test_a_module_whose_parameters_have_no_shape_yet_is_refused_with_the_way_out():
    net = torch.nn.LazyLinear(4)

    with pytest.raises(ChainError, match=r"lazy.*no_grad"):
        CheckpointedChain(lambda x, i: net(x), M)(torch.ones(2, 4))


def test_an_object_that_refuses_every_question_does_not_stop_the_search():
    class Placeholder:
        __slots__ = ()

        def __getattr__(self, name):
            raise RuntimeError("this object is not built yet")

    held = [Placeholder(), torch.tensor(0.7, requires_grad=True)]

    x = torch.ones(3)
    CheckpointedChain(lambda x, i: torch.sin(held[1] * x), M)(x).sum().backward()

    assert held[1].grad is not None
    assert find_captured(lambda x, i: held).tensors[0] is held[1]
