"""States that steps return: any pytree, shared memory, hidden tensors, order in memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainograd import (
    ChainError,
    CheckpointedChain,
)
from chainograd.state import detached_leaf
from tests.problems import M, every_plan, leaf, plain, ramp, same_gradients


@every_plan
@pytest.mark.parametrize("at", [0, 2, M - 1])
def test_a_step_may_return_its_input_or_a_parameter_itself(plan, at):
    def run(loop, w, x):
        def step(x, i):
            return w if i == at else x if i % 2 else torch.sin(w * x)

        return torch.autograd.grad(loop(step, x).sum(), (w, x), allow_unused=True)

    w, x = ramp(), ramp()
    expected = run(lambda step, x: plain(step, M, x), w, x)
    got = run(lambda step, x: CheckpointedChain(step, M, plan=plan)(x), w, x)
    for g, e in zip(got, expected, strict=True):
        assert g is e is None or torch.equal(g, e)


@every_plan
@pytest.mark.parametrize("store", ["device", "folder"])
def test_the_state_may_change_its_structure_share_memory_and_be_expanded(plan, store, tmp_path):
    w, x = ramp(), ramp()

    def step(state, i):
        parts = [leaf for leaf in torch.utils._pytree.tree_leaves(state) if torch.is_tensor(leaf)]
        y = torch.sin(w * parts[0] + parts[-1])
        made = [y, y.sum().expand(4), {"x": y, "view": y[:1], "none": None, "n": i}, (y, y)]
        return made[i % 4]

    def gradients(run):
        return torch.autograd.grad(run(x)["x"].sum(), (w, x))

    store = tmp_path if store == "folder" else store
    got = gradients(CheckpointedChain(step, M, plan=plan, store=store))
    assert all(map(torch.equal, got, gradients(lambda x: plain(step, M, x))))


@every_plan
def test_a_state_with_lazy_signs_is_compared_like_any_other(plan):
    w = ramp()

    def step(state, i):
        x, _ = state
        negated = torch.complex(x, x).conj().imag  # kept by torch as x with a minus to come
        return torch.sin(x * w), negated

    y, _ = CheckpointedChain(step, M, plan=plan)((torch.ones(4).double(), torch.ones(4).double()))
    assert torch.equal(
        torch.autograd.grad(y.sum(), w)[0],
        torch.autograd.grad(plain(step, M, (torch.ones(4).double(),) * 2)[0].sum(), w)[0],
    )


@pytest.mark.parametrize("layout", ["strided", "sparse"])
def test_a_stand_in_is_another_tensor(layout):
    tensor = torch.eye(2) if layout == "strided" else torch.eye(2).to_sparse()

    assert detached_leaf(tensor).requires_grad
    assert not tensor.requires_grad


@every_plan
def test_a_state_that_is_detached_in_place_is_refused_with_the_way_out(plan):
    def step(x, i):
        return torch.sin(x.detach_())

    with pytest.raises(RuntimeError) as seen:
        CheckpointedChain(step, M, plan=plan)(ramp() * 1).sum().backward()

    assert any("write `x = x.detach()`" in note for note in seen.value.__notes__)


@every_plan
def test_a_batch_of_one_keeps_its_order_in_memory(plan):
    net = nn.BatchNorm2d(8).eval()
    net.running_mean.normal_()
    x = torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    strides = []

    def step(x, i):
        strides.append(x.stride())
        return torch.tanh(net(x))

    same_gradients(step, [x, net.weight, net.bias], plan)
    assert set(strides) == {x.stride()}


def test_a_leaf_of_the_state_that_needs_no_gradient_gets_none():
    w = leaf(3)
    seen = []

    def step(state, i):
        x, c = state
        seen.append(c.requires_grad)
        return torch.sin(w * x + c), 2 * c

    y, c = CheckpointedChain(step, M)((torch.ones(3), torch.ones(3)))
    y.sum().backward()
    assert not c.requires_grad
    assert not any(seen)


class Hidden:
    def __init__(self, e):
        self.e = e


class InSlots:
    __slots__ = ("e",)

    def __init__(self, e):
        self.e = e


@pytest.mark.parametrize("kind", [Hidden, InSlots])
@pytest.mark.parametrize("plan", ["nodes", "graph"])
def test_an_object_in_the_state_that_hides_tensors_is_refused(kind, plan):
    net = nn.Linear(3, 3)

    def step(state, i):
        return {"x": state["x"] + net(state["x"]), "past": kind(net(state["x"]))}

    chain = CheckpointedChain(step, 3, plan=plan)
    with pytest.raises(ChainError, match=r"that step 0 returns holds an object .* with tensors"):
        chain({"x": torch.ones(3), "past": None})
    with pytest.raises(ChainError, match="state that enters step 0 holds"):
        chain({"x": torch.ones(3), "past": kind(torch.ones(3, requires_grad=True))})


def test_an_object_that_steps_only_pass_on_may_hold_constants():
    w, times = torch.ones(3, requires_grad=True), Hidden(torch.ones(3))

    def step(state, i):
        return {"x": w * state["x"] * state["times"].e, "times": state["times"]}

    CheckpointedChain(step, 3)({"x": torch.ones(3), "times": times})["x"].sum().backward()

    assert torch.equal(w.grad, torch.full((3,), 3.0))


def test_objects_without_tensors_may_be_in_a_state():
    w = torch.ones(3, requires_grad=True)

    def step(state, i):
        return {"x": w * state["x"], "note": Hidden("text"), "by": F.relu}

    CheckpointedChain(step, 3)({"x": torch.ones(3), "note": None, "by": None})["x"].sum().backward()

    assert torch.equal(w.grad, torch.full((3,), 3.0))


def test_a_state_may_be_any_pytree_and_carry_what_is_not_a_tensor():
    def step(state, i):
        x, extra = state["x"], state["extra"]
        h, n, label = extra
        h = torch.tanh(h + x * n)
        return {"x": x * 0.9 + h, "extra": (h, n + 1, label)}

    x = torch.randn(5, requires_grad=True)
    h = torch.randn(5, requires_grad=True)
    n = torch.tensor(1)
    start = {"x": x, "extra": (h, n, "kept")}
    y, z = plain(step, 5, start), CheckpointedChain(step, 5)(start)

    assert z["extra"][2] == "kept"
    assert int(z["extra"][1]) == 6
    assert not z["extra"][1].requires_grad
    a = torch.autograd.grad(y["x"].sum() + y["extra"][0].prod(), (x, h))
    b = torch.autograd.grad(z["x"].sum() + z["extra"][0].prod(), (x, h))
    assert all(map(torch.equal, a, b))


def test_a_step_that_changes_its_state_in_place_is_refused():
    w = torch.ones(3, requires_grad=True)

    def step(x, i):
        x.mul_(2)
        return x * w

    with pytest.raises(ChainError, match="Step 0 changed its input"):
        CheckpointedChain(step, 3)(torch.ones(3))
