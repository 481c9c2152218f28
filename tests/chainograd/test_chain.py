"""A chain equals the plain loop bit for bit, and passes gradcheck."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chainograd import CheckpointedChain, binomial, keep_last
from tests.problems import PLANS, M, Net, Noisy, plain, states_of

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plan", ["nodes", "graph"])
@pytest.mark.parametrize("M", [1, 2, 7])
def test_gradients_are_those_of_the_plain_loop_to_the_bit(dtype, plan, M):
    torch.manual_seed(0)
    net = Net(16, dtype)
    x = torch.randn(4, 16, dtype=dtype, requires_grad=True)
    c = torch.randn(16, dtype=dtype, requires_grad=True)
    wanted = (x, c, *net.parameters())

    y = plain(net, M, x, c=c)
    z = CheckpointedChain(net, M, plan=plan)(x, c=c)

    assert torch.equal(y, z)
    v = torch.randn_like(y)
    expected = torch.autograd.grad(y, wanted, v)
    assert all(map(torch.equal, torch.autograd.grad(z, wanted, v), expected))
    assert all(g.abs().max() > 0 for g in expected)


def test_first_and_second_derivatives_pass_gradcheck():
    torch.manual_seed(0)
    net = Net(3, torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    w, b = net.w, net.b
    chain = CheckpointedChain(net, 4)

    assert torch.autograd.gradcheck(lambda x, w, b: chain(x), (x, w, b))
    assert torch.autograd.gradgradcheck(lambda x, w, b: chain(x), (x, w, b))


def test_the_second_derivative_sees_the_noise_of_the_first_run():
    def step(x, i):
        return torch.sin(x * (1 + torch.rand_like(x)))

    def twice(run):
        torch.manual_seed(3)
        x = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
        y = run(x)
        torch.rand(7)  # the stream goes on before the backward passes
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    torch.testing.assert_close(
        twice(CheckpointedChain(step, 4)), twice(lambda x: plain(step, 4, x)), rtol=1e-12, atol=0
    )


def test_third_and_fourth_derivatives_are_those_of_the_plain_loop():
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    h = torch.sin(w)  # captured, and no leaf
    x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def derivatives(run):
        torch.manual_seed(0)
        y, found = run(x, w * x), []
        for _ in range(4):
            y, dx = torch.autograd.grad(y, (w, x), create_graph=True)
            found += [y, dx]
        return found

    def step(x, i, c):
        return torch.sin(h * x + c) * (1 + torch.rand(()))

    expected = derivatives(lambda x, c: plain(step, 3, x, c))
    for g, e in zip(derivatives(CheckpointedChain(step, 3)), expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=0)
        assert e.abs() > 1e-3


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
def test_losses_on_any_states_have_the_plain_gradient_under_any_plan(M, data, shape, noise, losses):
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


def test_a_chain_that_uses_no_parameter_returns_a_constant():
    w = torch.ones(3, requires_grad=True)

    y = CheckpointedChain(lambda x, i: x + 1 if i < 9 else x * w, 3)(torch.zeros(3))

    assert not y.requires_grad
    assert torch.equal(y, torch.full((3,), 3.0))


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


def test_ten_thousand_steps_need_no_recursion():
    w = torch.tensor(0.9999, requires_grad=True)

    for plan in ("nodes", binomial(10_000, slots=20)):
        w.grad = None
        CheckpointedChain(lambda x, i: w * x, 10_000, plan=plan)(torch.ones(())).backward()
        assert w.grad.item() == pytest.approx(10_000 * 0.9999**9999, rel=1e-3)


def same(gradients, plan, rtol=0.0):
    torch.manual_seed(4)
    expected = gradients(lambda step: lambda *args: plain(step, M, *args))
    torch.manual_seed(4)
    got = gradients(lambda step: CheckpointedChain(step, M, plan=plan))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("wanted", [("x",), ("w",), ("b", "x"), ("c",)])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_caller_may_ask_for_some_of_the_gradients(plan, wanted):
    net = Net(4, torch.float64)
    tensors = {"x": torch.randn(3, 4, dtype=torch.float64, requires_grad=True),
               "c": torch.randn(4, dtype=torch.float64, requires_grad=True),
               "w": net.w, "b": net.b}  # fmt: skip

    def gradients(run):
        y = run(net)(tensors["x"], tensors["c"])
        return torch.autograd.grad(y.sum(), [tensors[name] for name in wanted])

    same(gradients, plan)


def test_keyword_arguments_of_a_step_may_have_any_name():
    w = torch.tensor(2.0, requires_grad=True)
    doubled = 2 * w  # no leaf: another tensor stands in for it
    chain = CheckpointedChain(lambda x, i, *, step, swapped: doubled * x * step + swapped, 2)
    chain(torch.ones(()), step=3, swapped=1).backward()

    assert w.grad == 2 * (2 * 3 * 3 * 4 + 3)  # y = (3 d)^2 + 3 d + 1 with d = 2 w
