"""What a second reading found: objects in states, leftovers of earlier iterations, graphs kept."""

import gc
import linecache
import sys
from linecache import getline

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainograd import CheckpointedChain, clamped
from chainograd.captured.find import find_captured
from chainograd.errors import ChainError
from tests.problems import plain


class Hidden:
    def __init__(self, e):
        self.e = e


class InSlots:
    __slots__ = ("e",)

    def __init__(self, e):
        self.e = e


def loop(step, x, M, *args):
    for i in range(M):
        x = step(x, i, *args)
    return x


@pytest.mark.parametrize("kind", [Hidden, InSlots])
@pytest.mark.parametrize("plan", ["nodes", "graph"])
def test_an_object_in_the_state_that_hides_tensors_is_refused(kind, plan):
    net = nn.Linear(3, 3)

    def step(state, i):
        return {"x": state["x"] + net(state["x"]), "past": kind(net(state["x"]))}

    chain = CheckpointedChain(step, 3, plan=plan)
    with pytest.raises(
        ChainError, match=r"state that step 0 gives holds an object .* with tensors in it"
    ):
        chain({"x": torch.ones(3), "past": None})
    with pytest.raises(ChainError, match="state that enters step 0 holds"):
        chain({"x": torch.ones(3), "past": kind(torch.ones(3, requires_grad=True))})


def test_an_object_that_is_only_handed_on_may_hold_constants():
    w, times = torch.ones(3, requires_grad=True), Hidden(torch.ones(3))

    def step(state, i):
        return {"x": w * state["x"] * state["times"].e, "times": state["times"]}

    CheckpointedChain(step, 3)({"x": torch.ones(3), "times": times})["x"].sum().backward()

    assert torch.equal(w.grad, torch.full((3,), 3.0))


def test_features_that_a_hook_keeps_are_no_finding():
    _, step = features_kept()

    found = CheckpointedChain(step, 4).check(torch.ones(2, 3, dtype=torch.float64))

    assert not any("kept a tensor" in finding.text for finding in found)
    assert not any(finding.kind == "not exact" for finding in found)


def test_objects_without_tensors_may_be_in_a_state():
    w = torch.ones(3, requires_grad=True)

    def step(state, i):
        return {"x": w * state["x"], "note": Hidden("text"), "by": F.relu}

    CheckpointedChain(step, 3)({"x": torch.ones(3), "note": None, "by": None})["x"].sum().backward()

    assert torch.equal(w.grad, torch.full((3,), 3.0))


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
def test_what_is_left_of_an_iteration_does_not_stop_the_next(made, plan):
    grads = []
    for chained in (True, False):
        torch.manual_seed(0)
        owner, step = made()
        net = owner if isinstance(owner, nn.Module) else owner.net
        for _ in range(3):
            x = torch.ones(2, 3, dtype=torch.float64)
            y = CheckpointedChain(step, 4, plan=plan)(x) if chained else loop(step, x, 4)
            owner.loss = y.square().sum()
            owner.loss.backward()
        grads.append([p.grad for p in net.parameters()])

    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_results_that_the_steps_object_holds_do_not_pile_up():
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


def test_a_captured_tensor_with_a_graph_still_gets_its_gradient():
    v = torch.ones(3, requires_grad=True)
    w = v.exp()
    CheckpointedChain(lambda x, i: w * x, 3)(torch.ones(3)).sum().backward()

    ours, v.grad = v.grad, None
    loop(lambda x, i: v.exp() * x, torch.ones(3), 3).sum().backward()
    torch.testing.assert_close(ours, v.grad)


def test_graphs_that_a_step_turns_on_end_with_the_step():
    net = nn.Linear(3, 3)

    def step(x, i):
        with torch.enable_grad():
            return x + torch.tanh(net(x))

    states = []
    x = torch.ones(2, 3, requires_grad=True)
    chain = CheckpointedChain(lambda x, i: (states.append(x), step(x, i))[1], 4)
    y = chain(x)

    assert all(state.grad_fn is None for state in states)
    y.sum().backward()
    ours, x.grad = x.grad, None
    loop(step, x, 4).sum().backward()
    assert torch.equal(ours, x.grad)


def test_a_step_that_takes_a_gradient_of_its_own_gives_the_plain_loops():
    w, runs = torch.ones(3, requires_grad=True), []

    def step(x, i):
        runs.append(i)
        y = x.detach().requires_grad_()
        return w * x - torch.autograd.grad(y.square().sum(), y)[0]

    chain, x = CheckpointedChain(step, 5), torch.ones(3, requires_grad=True)
    for extra in (1, 0):  # the first step shows that graphs must save, once
        runs.clear()
        got = torch.autograd.grad(chain(x).square().sum(), (x, w))
        assert len(runs) == 9 + extra
        expected = torch.autograd.grad(plain(step, 5, x).square().sum(), (x, w))
        assert all(map(torch.equal, got, expected))


def test_what_pythons_own_modules_hold_is_not_searched(monkeypatch):
    w = torch.ones(3, requires_grad=True)
    monkeypatch.setitem(linecache.cache, "odd", [w])
    monkeypatch.setitem(sys.modules, "odd", [w])
    monkeypatch.setattr(linecache, "odd", [w], raising=False)

    def step(x, i):
        return x + len(getline("odd", i)) + len(sys.modules) + len(linecache.odd)

    assert not find_captured(step).tensors


def test_a_transform_inside_a_step_runs_beside_frozen_layers():
    torch.manual_seed(0)
    guide = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(2, 2), nn.SiLU())
    guide = guide.requires_grad_(False).double()
    net = nn.Conv2d(1, 1, 3, padding=1).double()

    def step(x, i):
        pull = torch.func.grad(lambda y: torch.tanh(guide(y)).sum())(x)
        return x + 0.1 * net(x) + 0.1 * pull

    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    grads = []
    for run in (CheckpointedChain(step, 3, frozen="auto"), lambda x: loop(step, x, 3)):
        net.zero_grad()
        run(x).square().sum().backward()
        grads.append(net.weight.grad.clone())

    assert torch.equal(*grads)


@pytest.mark.parametrize("uses", [1, 2])
def test_sparse_gradients_add_up(uses):
    def step(x, i):
        for _ in range(uses):
            x = torch.tanh(x + table(torch.tensor(i % 5)))
        return x

    grads = []
    for run in (lambda x: CheckpointedChain(step, 4)(x), lambda x: loop(step, x, 4)):
        torch.manual_seed(0)
        table = nn.Embedding(5, 3, sparse=True)
        run(torch.ones(3)).sum().backward()
        assert table.weight.grad.is_sparse
        grads.append(table.weight.grad.to_dense())

    assert torch.equal(*grads)


def test_a_module_that_is_an_argument_is_looked_into():
    grads, counts = [], []
    for chained in (True, False):
        torch.manual_seed(0)
        norm, w = nn.BatchNorm1d(3), nn.Linear(3, 3)

        def step(x, i, norm, w=w):
            return torch.tanh(norm(w(x)))

        x = torch.randn(5, 3)
        y = CheckpointedChain(step, 4)(x, norm) if chained else loop(step, x, 4, norm)
        y.square().sum().backward()
        grads.append([norm.weight.grad, w.weight.grad])
        counts.append(int(norm.num_batches_tracked))

    assert counts == [4, 4]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_devices_of_frozen_weights_are_in_use():
    frozen = nn.Linear(2, 2, device="meta").requires_grad_(False)

    assert find_captured(lambda x, i: frozen(x)).devices == {torch.device("meta")}


def test_a_tensor_that_a_step_keeps_is_found_by_the_preflight():
    A = torch.ones(3, requires_grad=True)

    class Merged:
        m = None

        def __call__(self, x, i):
            if self.m is None:
                self.m = A.exp()
            return torch.tanh(x * self.m)

    found = CheckpointedChain(Merged(), 4).check(torch.ones(3, requires_grad=True))

    assert any("kept a tensor that it computed" in finding.text for finding in found)


def test_complex_numbers_are_not_clamped():
    with pytest.raises(ValueError, match="Take `clipped`"):
        clamped(1.0)(0, torch.ones(2, dtype=torch.complex64))
