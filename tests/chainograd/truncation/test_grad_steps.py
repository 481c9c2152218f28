"""The last K steps and sets of steps, against the loop cut by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chainograd import CheckpointedChain, binomial, meter
from tests.chainograd.truncation.cut_loop import cut, double, equal
from tests.problems import PLANS, Counted, M, Net, Noisy


class Watched:
    """Notes which step runs, and whether it may build a graph."""

    def __init__(self, step):
        self.step, self.runs = step, []

    def __call__(self, x, i):
        self.runs.append((i, torch.is_grad_enabled()))
        return self.step(x, i)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("steps", [{6}, {4, 6}, {0, 2, 6}, {0, 1, 5, 6}])
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

    CheckpointedChain(step, M, grad_steps={2, 5, 6})(double(2, 3)).sum().backward()

    left_out = (0, 1, 3, 4)
    assert [run for run in step.runs if run[0] in left_out] == [(i, False) for i in left_out]
    # No loss is behind step 2, since step 3 is left out: it is not run again either.
    assert step.runs[M:] == [(5, True)]


def test_no_state_of_a_step_without_a_gradient_is_kept():
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


def test_a_result_without_a_gradient_is_refused_with_the_way_out():
    w = torch.ones((), requires_grad=True)
    chain = CheckpointedChain(lambda x, i: w * x, M, grad_steps={0, 1})

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

    expected = penalised(lambda x: truncated(net, range(M - K, M), x)[-1])
    got = penalised(CheckpointedChain(net, M, grad_steps=K))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-11)
