"""Every plan, with every kind of noise, against the plain loop; and what happens when it fails."""

import gc
import random
import weakref

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chainograd import (
    ChainError,
    ChangedTensorError,
    CheckpointedChain,
    ReplayError,
    binomial,
    keep_last,
    meter,
)
from tests.problems import Counted, Net, Noisy, plain, states_of

M = 7
PLANS = {
    "nodes": "nodes",
    "graph": "graph",
    "last 3": keep_last(M, 3),
    "1 slot": binomial(M, slots=1),
    "2 slots": binomial(M, slots=2),
    "3 slots": binomial(M, slots=3),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("kind", [Net, Noisy])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_plan_gives_the_gradients_of_the_plain_loop_to_the_bit(plan, kind, dtype):
    torch.manual_seed(0)
    net = kind(8, dtype)
    x = torch.randn(3, 8, dtype=dtype, requires_grad=True)
    c = torch.randn(8, dtype=dtype, requires_grad=True)
    wanted = (x, c, *net.parameters())

    def gradients(run):
        torch.manual_seed(5)
        out = run(x, c=c)
        grads = torch.autograd.grad(out, wanted, torch.ones_like(out))
        return [out, *grads, torch.rand(3)]  # the stream goes on as if nothing had run again

    expected = gradients(lambda x, c: plain(net, M, x, c=c))
    assert all(map(torch.equal, gradients(CheckpointedChain(net, M, plan=plan)), expected))


@settings(deadline=None, max_examples=40)
@given(
    M=st.integers(1, 9),
    data=st.data(),
    shape=st.lists(st.integers(1, 3), max_size=2),
    noise=st.booleans(),
    losses=st.sets(st.integers(1, 9), min_size=1),
)
def test_losses_on_any_states_under_any_plan(M, data, shape, noise, losses):
    plan = data.draw(
        st.one_of(
            st.integers(1, M).map(lambda k: keep_last(M, k)),
            st.integers(1, M).map(lambda s: binomial(M, slots=s)),
        )
    )
    losses = {min(i, M) for i in losses}
    w = torch.full((), 0.7, requires_grad=True)

    def step(state, i):
        a, b, count = state["a"], state["b"], state["count"]
        drift = torch.sin(w * a + b) + (torch.rand_like(a) * a if noise else 0)
        return {"a": drift, "b": b + a.sum() * w, "count": count + 1}

    def gradients(run):
        torch.manual_seed(1)
        x = {"a": torch.ones([*shape, 2]).requires_grad_(), "b": torch.zeros(()), "count": 0}
        states = run(x)
        loss = sum((states[i]["a"] * states[i]["b"]).square().sum() for i in losses)
        assert states[-1]["count"] == M
        return torch.autograd.grad(loss, (x["a"], w))

    expected = gradients(lambda x: states_of(step, M, x))
    got = gradients(CheckpointedChain(step, M, plan=plan).trajectory)
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_real_runs_evaluate_as_often_as_the_plan_says(plan):
    step = Counted(Net(4, torch.float32))
    chain = CheckpointedChain(step, M, plan=plan)
    chain(torch.randn(2, 4)).sum().backward()

    assert len(step.runs) == chain.plan.evaluations


def test_a_trajectory_costs_one_sweep_and_only_from_the_last_state_that_a_loss_sees():
    step = Counted(Net(4, torch.float32))
    states = CheckpointedChain(step, M).trajectory(torch.randn(2, 4))
    step.runs.clear()

    (states[2].sum() + states[4].sum()).backward()

    assert step.runs == [3, 2, 1, 0]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_steps_before_the_first_trainable_one_are_not_run_again(plan):
    w = torch.ones(3, requires_grad=True)
    step = Counted(lambda x, i: torch.sin(x * w) if i >= 4 else torch.cos(x))
    x = torch.linspace(0, 1, 3)
    expected = torch.autograd.grad(plain(step, M, x).sum(), w)[0]
    step.runs.clear()

    CheckpointedChain(step, M, plan=plan)(x).sum().backward()

    assert torch.equal(w.grad, expected)
    assert step.runs[:M] == list(range(M))
    if plan in ("nodes", "graph") or plan == PLANS["last 3"]:
        assert all(i >= 4 for i in step.runs[M:])
    assert len(step.runs) <= CheckpointedChain(step, M, plan=plan).plan.evaluations


def test_a_sweep_ends_at_the_first_step_that_a_gradient_needs():
    w = torch.ones(3, requires_grad=True)
    step = Counted(lambda x, i: torch.sin(x * w) if i >= 4 else torch.cos(x))

    CheckpointedChain(step, 6, plan=binomial(6, slots=1))(torch.ones(3)).sum().backward()

    assert step.runs == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]


def test_a_chain_in_which_nothing_trainable_is_met_gives_an_ordinary_constant():
    w = torch.ones(3, requires_grad=True)

    y = CheckpointedChain(lambda x, i: x + 1 if i < 9 else x * w, 3)(torch.zeros(3))

    assert not y.requires_grad
    assert torch.equal(y, torch.full((3,), 3.0))


def test_cotangents_can_be_seen_and_changed_at_every_node():
    w = torch.tensor(1.5, requires_grad=True)
    x = torch.tensor(2.0, requires_grad=True)
    seen = {}

    def halve(i, g):
        seen[i] = g.clone()
        return g / 2

    CheckpointedChain(lambda x, i: w * x, 3, grad_transform=halve)(x).backward()

    # dx: 1 -> w/2 at node 2 -> w^2/4 at node 1 -> w^3/8 at node 0
    assert [seen[i].item() for i in (2, 1, 0)] == [1.5, 1.5**2 / 2, 1.5**3 / 4]
    assert x.grad.item() == 1.5**3 / 8
    # dw: the state that enters each step, times the cotangent that leaves it.
    assert w.grad.item() == 2 * 1.5**2 + 2 * 1.5 * (1.5 / 2) + 2 * (1.5**2 / 4)


@pytest.mark.parametrize("plan", [PLANS["1 slot"], PLANS["2 slots"], "nodes"], ids=str)
def test_a_step_that_is_not_repeatable_is_refused_by_its_index_in_every_plan(plan):
    w = torch.ones((), requires_grad=True)
    calls = {}

    def step(x, i):
        calls[i] = calls.get(i, 0) + 1
        return torch.sin(w * x) + (1e-6 * calls[i] if i == 4 else 0)

    with pytest.raises(ReplayError, match="Step 4"):
        CheckpointedChain(step, M, plan=plan)(torch.ones(2)).sum().backward()


def test_a_node_changed_in_place_is_refused_with_its_step():
    w = torch.ones((), requires_grad=True)
    states = CheckpointedChain(lambda x, i: w * x, M).trajectory(torch.ones(2))
    loss = states[-1].sum()
    with torch.no_grad():
        states[3].mul_(2)

    with pytest.raises(ChangedTensorError, match="enters step 3"):
        loss.backward()


def test_a_second_backward_pass_needs_retain_graph_and_says_so():
    w = torch.ones((), requires_grad=True)
    loss = CheckpointedChain(lambda x, i: w * x, 3)(torch.ones(2)).sum()
    loss.backward()

    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_backward_twice_gives_the_same_twice_under_every_plan(plan):
    net = Noisy(4, torch.float64)
    loss = CheckpointedChain(net, M, plan=plan)(torch.randn(2, 4, dtype=torch.float64)).sum()

    first = torch.autograd.grad(loss, net.w, retain_graph=True)[0]
    second = torch.autograd.grad(loss, net.w)[0]

    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("grad_steps", "used_from"), [(1, 0), ({1, M - 1}, 0), (None, M - 1)], ids=str
)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_backward_twice_needs_no_node_before_the_steps_that_a_gradient_passes(
    plan, grad_steps, used_from
):
    w = torch.tensor(0.7, requires_grad=True)

    def step(x, i):
        return torch.sin(w * x) if i >= used_from else torch.cos(x)

    y = CheckpointedChain(step, M, plan=plan, grad_steps=grad_steps)(torch.ones(()))

    grads = [torch.autograd.grad(y, w, retain_graph=True)[0] for _ in range(3)]

    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_an_error_in_a_step_says_which_and_the_chain_works_again():
    w = torch.ones((), requires_grad=True)
    broken = {"step": None}

    def step(x, i):
        if i == broken["step"]:
            raise KeyError("mine")
        return torch.sin(w * x)

    chain = CheckpointedChain(step, 5)
    broken["step"] = 3
    with pytest.raises(KeyError, match="mine") as first:
        chain(torch.ones(2))
    broken["step"] = None
    loss = chain(torch.ones(2)).sum()
    broken["step"] = 1
    with pytest.raises(KeyError, match="mine") as again:
        loss.backward()
    broken["step"] = None

    assert "step 3 of 0 … 4" in first.value.__notes__[0]
    assert "step 1 of 0 … 4" in again.value.__notes__[0]
    chain(torch.ones(2)).sum().backward()
    assert w.grad is not None


def test_when_memory_runs_out_kept_graphs_are_dropped_and_the_run_goes_on():
    w = torch.full((), 0.9, requires_grad=True)
    x = torch.linspace(0, 1, 3)
    expected = torch.autograd.grad(plain(lambda x, i: torch.sin(w * x), M, x).sum(), w)[0]
    state = {"full": True}

    def step(x, i):
        if i == 5 and torch.is_grad_enabled() and state["full"]:
            state["full"] = False
            raise torch.OutOfMemoryError("injected")
        return torch.sin(w * x) + 0 * torch.rand(())

    counted = Counted(step)
    with pytest.warns(UserWarning, match="Memory ran out at step 5 with 5 graphs"):
        loss = CheckpointedChain(counted, M, plan="graph")(x).sum()
    loss.backward()

    assert torch.equal(w.grad, expected)
    assert counted.runs == [0, 1, 2, 3, 4, 5, 5, 6, 5, 4, 3, 2, 1, 0]


def test_memory_that_runs_out_with_nothing_to_drop_is_the_callers_to_know():
    w = torch.ones((), requires_grad=True)

    def step(x, i):
        if i == 2:
            raise torch.OutOfMemoryError("injected")
        return w * x

    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        CheckpointedChain(step, 5)(torch.ones(2))


def test_binomial_memory_is_that_of_its_slots():
    w = torch.randn(64, 64, requires_grad=True)
    node = 32 * 64 * 4

    def peak(M, plan):
        x = torch.randn(32, 64)
        with meter() as reading:
            CheckpointedChain(lambda x, i: torch.tanh(x @ w / 8), M, plan=plan)(x).sum().backward()
        w.grad = None
        return reading.peak_bytes

    three = peak(40, binomial(40, slots=3))
    digests = 8 * 40  # of states that are not kept
    assert peak(80, binomial(80, slots=3)) - three == digests
    assert 0 <= 6 * node - (peak(40, binomial(40, slots=9)) - three) <= digests
    assert peak(40, "nodes") - three >= 34 * node


def test_ten_thousand_steps_need_no_recursion():
    w = torch.tensor(0.9999, requires_grad=True)

    for plan in ("nodes", binomial(10_000, slots=20)):
        w.grad = None
        CheckpointedChain(lambda x, i: w * x, 10_000, plan=plan)(torch.ones(())).backward()
        assert w.grad.item() == pytest.approx(10_000 * 0.9999**9999, rel=1e-3)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_after_the_backward_pass_the_result_holds_nothing_but_itself(plan):
    w = torch.ones(100, requires_grad=True)
    with meter() as reading:
        y = CheckpointedChain(lambda x, i: x * w if i > 3 else x + 1, M, plan=plan)(torch.ones(100))
        torch.autograd.grad(y.sum(), w)

    assert reading.live_bytes == 400
    del y
    assert reading.live_bytes == 0


@pytest.mark.parametrize("end", ["backward", "forgotten", "failed"])
def test_everything_is_freed_without_the_collector_however_a_run_ends(end):
    net = Net(4, torch.float32)
    failing = {"now": False}

    def step(x, i):
        if failing["now"]:
            raise ValueError("stop")
        return net(x, i)

    def run():
        states = CheckpointedChain(step, 4).trajectory(torch.ones(2, 4))
        reference = weakref.ref(states[2])
        if end == "backward":
            states[-1].sum().backward()
        if end == "failed":
            failing["now"] = True
            with pytest.raises(ValueError, match="stop"):
                states[-1].sum().backward()
        return reference

    gc.disable()
    try:
        assert run()() is None
    finally:
        gc.enable()


def truncated(step, steps, x, *args):
    """The plain loop with `no_grad` around the steps that the gradient may not pass."""
    states = [x]
    for i in range(M):
        with torch.set_grad_enabled(i in steps):
            states.append(step(states[-1], i, *args))
    return states


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("K", [1, 3, 7])
def test_the_last_k_steps_are_those_of_the_truncated_loop_and_the_others_run_once(plan, K):
    net = Noisy(4, torch.float64)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def gradients(run):
        torch.manual_seed(2)
        return torch.autograd.grad(run(x).sum(), [x, *net.parameters()], allow_unused=True)

    expected = gradients(lambda x: truncated(net, range(M - K, M), x)[-1])
    step = Counted(net)
    got = gradients(CheckpointedChain(step, M, plan=plan, params=net.parameters(), grad_steps=K))

    assert (got[0] is None) == (expected[0] is None) == (K < M)
    assert all(torch.equal(g, e) for g, e in zip(got[-2:], expected[-2:], strict=True))
    if plan in ("nodes", "graph") or plan == PLANS["last 3"]:
        assert all(i >= M - K for i in step.runs[M:])


@settings(deadline=None, max_examples=30)
@given(steps=st.sets(st.integers(0, M - 1), min_size=1), losses=st.sets(st.integers(1, M)),
       slots=st.integers(0, 4))  # fmt: skip
def test_any_set_of_steps_with_losses_on_any_states(steps, losses, slots):
    net = Net(3, torch.float64)
    x = torch.ones(2, 3, dtype=torch.float64).requires_grad_()
    plan = binomial(M, slots=slots) if slots else "nodes"
    chain = CheckpointedChain(net, M, plan=plan, grad_steps=steps)

    def gradients(states):
        seen = [states[i] for i in losses if states[i].requires_grad]
        if not seen:
            return []
        loss = sum(y.square().sum() for y in seen)
        return torch.autograd.grad(loss, [x, *net.parameters()], allow_unused=True)

    expected, got = gradients(truncated(net, steps, x)), gradients(chain.trajectory(x))
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert (g is None) == (e is None)
        assert g is None or torch.equal(g, e)


def test_truncated_steps_are_neither_stored_nor_run_again():
    w = torch.ones(1000, requires_grad=True)

    def peak(**changes):
        step = Counted(lambda x, i: torch.sin(w * x))
        with meter() as reading:
            y = CheckpointedChain(step, 40, params=[w], **changes)(torch.ones(1000))
            torch.autograd.grad(y.sum(), w)
        return reading.peak_bytes, len(step.runs)

    (small, runs), (large, all_runs) = peak(grad_steps=5), peak()
    assert (runs, all_runs) == (40 + 4, 79)
    assert large - small >= 34 * 4000


def test_a_random_truncation_is_drawn_once_a_call():
    drawn = []

    def draw(num_steps):
        drawn.append(1 + len(drawn) % num_steps)
        return drawn[-1]

    w = torch.ones((), requires_grad=True)
    chain = CheckpointedChain(lambda x, i: w * x, 4, grad_steps=draw)
    grads = [torch.autograd.grad(chain(torch.ones(())), w)[0].item() for _ in range(3)]

    assert drawn == [1, 2, 3]
    assert grads == [1, 2, 3]


@pytest.mark.parametrize(
    ("grad_steps", "message"),
    [(0, "1 … 7, got 0"), (8, "got 8"), ({7}, r"0 … 6, got \[7\]"), ([], "got"), ({1.5}, "1.5")],
)
def test_steps_that_are_not_there_are_refused(grad_steps, message):
    with pytest.raises(ValueError, match=message):
        CheckpointedChain(lambda x, i: x, M, grad_steps=grad_steps)


def test_a_result_without_a_gradient_is_refused_with_the_way_out():
    w = torch.ones((), requires_grad=True)
    chain = CheckpointedChain(lambda x, i: w * x, M, grad_steps={0, 1})

    with pytest.raises(ValueError, match=r"last step, 6.*trajectory"):
        chain(torch.ones(()))


@pytest.mark.parametrize("draw", [random.random, numpy.random.rand, numpy.random.randn])
def test_noise_of_python_and_numpy_is_replayed_and_the_streams_go_on(draw):
    w = torch.ones((), requires_grad=True)

    def step(x, i):
        return torch.sin(w * x + draw())

    def run(chain):
        random.seed(1)
        numpy.random.seed(1)
        (g,) = torch.autograd.grad(chain(torch.ones(())), w)
        return g, random.random(), numpy.random.randn()

    expected = run(lambda x: plain(step, M, x))
    for plan in PLANS.values():
        assert run(CheckpointedChain(step, M, plan=plan)) == expected


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_statistics_of_batches_are_updated_once_a_step(plan):
    def make():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh()
        ).double()

    x = torch.randn(8, 4, dtype=torch.float64)
    net, reference = make(), make()
    plain(lambda x, i: reference(x), M, x).sum().backward()
    chain = CheckpointedChain(lambda x, i: net(x), M, plan=plan)
    chain.measure(x)

    chain(x).sum().backward()

    assert all(map(torch.equal, net.buffers(), reference.buffers()))
    assert net[1].num_batches_tracked == M
    grads = [p.grad for p in net.parameters()]
    assert all(map(torch.equal, grads, (p.grad for p in reference.parameters())))


@pytest.mark.parametrize("K", [3, 7])
def test_second_derivatives_are_those_of_the_truncated_loop_also_beside_first_ones(K):
    net = Noisy(4, torch.float64)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def penalised(run):
        torch.manual_seed(2)
        y = run(x).square().sum()
        (g,) = torch.autograd.grad(y, net.w, create_graph=True)
        net.zero_grad()
        (y + g.square().sum()).backward()
        return net.w.grad.clone(), net.b.grad.clone()

    expected = penalised(lambda x: truncated(net, range(M - K, M), x)[-1])
    got = penalised(CheckpointedChain(net, M, grad_steps=K))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-11)


def test_a_second_derivative_through_a_transform_of_cotangents_is_refused():
    w = torch.ones((), requires_grad=True)
    y = CheckpointedChain(lambda x, i: w * x, 3, grad_transform=lambda i, g: g / 2)(torch.ones(()))

    with pytest.raises(ChainError, match="grad_transform"):
        torch.autograd.grad(y, w, create_graph=True)


def test_a_budget_keeps_graphs_of_the_steps_that_the_gradient_may_pass():
    net, x = Net(4, torch.float32), torch.randn(20, 4)

    def kept(**changes):
        chain = CheckpointedChain(net, M, plan="1 GiB", **changes)
        chain(x)
        with meter() as reading:
            y = chain(x)
        return reading.live_bytes - y.nbytes

    assert 0 < kept(grad_steps=2) < kept() / 2
