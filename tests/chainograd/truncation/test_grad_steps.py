"""The last K steps and sets of steps, against the loop cut by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chainograd import (
    CheckpointedChain,
    binomial,
    keep_last,
    meter,
)
from tests.chainograd.truncation.cut_loop import PLANS, M, cut, double, equal
from tests.problems import Counted, Net, Noisy


class Watched:
    """Notes which step runs, and whether it may build a graph."""

    def __init__(self, step):
        self.step, self.runs = step, []

    def __call__(self, x, i):
        self.runs.append((i, torch.is_grad_enabled()))
        return self.step(x, i)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("K", [1, 4, M])
def test_the_last_k_steps_are_the_loop_that_is_cut_once(plan, K):
    net, x = Noisy(3, torch.float64), double(2, 3).requires_grad_()

    def loop(x):
        for i in range(M):
            x = net(x if K == M or i != M - K else x.detach(), i)
        return x

    def result(run):
        torch.manual_seed(0)
        loss = run(x).square().sum()
        return loss, *torch.autograd.grad(loss, [x, *net.parameters()], allow_unused=True)

    chain = CheckpointedChain(net, M, plan=plan, grad_steps=K)
    equal(result(chain), result(loop))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("steps", [{5}, {3, 5}, {0, 2, 5}, {0, 1, 4, 5}])
def test_a_set_of_steps_is_the_loop_that_is_cut_after_all_others(plan, steps):
    net, x = Noisy(3, torch.float64), double(2, 3).requires_grad_()

    def result(run):
        torch.manual_seed(0)
        states = run(x)
        seen = [states[i] for i in (1, 4, M) if states[i].requires_grad]
        loss = sum(state.square().sum() for state in seen)
        return loss, *torch.autograd.grad(loss, [x, *net.parameters()], allow_unused=True)

    chain = CheckpointedChain(net, M, plan=plan, grad_steps=steps)
    equal(result(chain.trajectory), result(lambda x: cut(net, steps, x)))


def test_steps_without_a_gradient_run_once_and_without_a_graph():
    step = Watched(Net(3, torch.float64))

    CheckpointedChain(step, M, grad_steps={2, 4, 5})(double(2, 3)).sum().backward()

    assert [run for run in step.runs if run[0] in (0, 1, 3)] == [(0, False), (1, False), (3, False)]
    # No loss is behind step 2, since step 3 is left out: it is not run again either.
    assert step.runs[M:] == [(4, True)]


def test_of_steps_without_a_gradient_no_state_is_kept():
    w = torch.ones(100, requires_grad=True)

    def kept(num_steps, K):
        chain = CheckpointedChain(lambda x, i: x + w, num_steps, grad_steps=K)
        with meter() as reading:
            y = chain(torch.ones(100))
        return reading.live_bytes - y.nbytes

    assert kept(60, 3) == kept(6, 3)
    assert kept(6, 4) - kept(6, 3) == 400  # one node


# Torch's own forward-mode AD warns that one of its parts is deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
@pytest.mark.parametrize("K", [1, 4, M])
def test_transforms_of_torch_func_are_those_of_the_loop_that_is_cut(K):
    net, x, w = Net(3, torch.float64), double(2, 3), double(3)
    chain = CheckpointedChain(lambda x, i, w: net(x, i) * w, M, grad_steps=K)

    def run(w):
        return chain(x, w).square().sum()

    def loop(w):
        return cut(lambda x, i, w: net(x, i) * w, range(M - K, M), x, w)[-1].square().sum()

    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.hessian):
        got, expected = transform(run)(w), transform(loop)(w)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)  # sums in another order


def test_a_loss_on_the_last_state_keeps_nothing_for_steps_before_a_gap():
    net, x = Net(3, torch.float64), double(2, 3)
    chain = CheckpointedChain(net, 6, plan="graph", grad_steps={0, 1, 3, 5})
    with meter() as reading:
        y = chain(x)
    kept = reading.live_bytes

    with meter() as reading:
        alone = CheckpointedChain(net, 6, plan="graph", grad_steps=1)(x)

    assert kept == reading.live_bytes
    assert torch.equal(y, alone)


L = 7
MORE_PLANS = {
    "nodes": "nodes",
    "graph": "graph",
    "last 3": keep_last(L, 3),
    "1 slot": binomial(L, slots=1),
    "2 slots": binomial(L, slots=2),
    "3 slots": binomial(L, slots=3),
}


def truncated(step, steps, x, *args):
    """The plain loop with `no_grad` around the steps that the gradient may not pass."""
    states = [x]
    for i in range(L):
        with torch.set_grad_enabled(i in steps):
            states.append(step(states[-1], i, *args))
    return states


@pytest.mark.parametrize("plan", MORE_PLANS.values(), ids=MORE_PLANS)
@pytest.mark.parametrize("K", [1, 3, 7])
def test_the_last_k_steps_are_those_of_the_truncated_loop_and_the_others_run_once(plan, K):
    net = Noisy(4, torch.float64)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def gradients(run):
        torch.manual_seed(2)
        return torch.autograd.grad(run(x).sum(), [x, *net.parameters()], allow_unused=True)

    expected = gradients(lambda x: truncated(net, range(L - K, L), x)[-1])
    step = Counted(net)
    got = gradients(CheckpointedChain(step, L, plan=plan, params=net.parameters(), grad_steps=K))

    assert (got[0] is None) == (expected[0] is None) == (K < L)
    assert all(torch.equal(g, e) for g, e in zip(got[-2:], expected[-2:], strict=True))
    if plan in ("nodes", "graph") or plan == MORE_PLANS["last 3"]:
        assert all(i >= L - K for i in step.runs[L:])


@settings(deadline=None, max_examples=30)
@given(steps=st.sets(st.integers(0, L - 1), min_size=1), losses=st.sets(st.integers(1, L)),
       slots=st.integers(0, 4))  # fmt: skip
def test_any_set_of_steps_with_losses_on_any_states(steps, losses, slots):
    net = Net(3, torch.float64)
    x = torch.ones(2, 3, dtype=torch.float64).requires_grad_()
    plan = binomial(L, slots=slots) if slots else "nodes"
    chain = CheckpointedChain(net, L, plan=plan, grad_steps=steps)

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


@pytest.mark.parametrize(
    ("grad_steps", "message"),
    [(0, "1 … 7, got 0"), (8, "got 8"), ({7}, r"0 … 6, got \[7\]"), ([], "got"), ({1.5}, "1.5")],
)
def test_steps_that_are_not_there_are_refused(grad_steps, message):
    with pytest.raises(ValueError, match=message):
        CheckpointedChain(lambda x, i: x, L, grad_steps=grad_steps)


def test_a_result_without_a_gradient_is_refused_with_the_way_out():
    w = torch.ones((), requires_grad=True)
    chain = CheckpointedChain(lambda x, i: w * x, L, grad_steps={0, 1})

    with pytest.raises(ValueError, match=r"last step, 6.*trajectory"):
        chain(torch.ones(()))


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

    expected = penalised(lambda x: truncated(net, range(L - K, L), x)[-1])
    got = penalised(CheckpointedChain(net, L, grad_steps=K))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-11)
