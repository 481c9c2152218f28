"""The oracle is the plain loop, bit for bit; then gradcheck."""

import gc
import itertools

import pytest
import torch

from chainograd import (
    CapturedTensorError,
    ChainError,
    ChangedTensorError,
    CheckpointedChain,
    ReplayError,
    meter,
)
from tests.problems import Net, plain

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


@pytest.mark.parametrize(("plan", "evaluations"), [("nodes", 2 * 9 - 1), ("graph", 9)])
def test_steps_are_evaluated_as_often_as_the_plan_says(plan, evaluations):
    seen = []
    w = torch.ones(3, requires_grad=True)

    def step(x, i):
        seen.append(i)
        return torch.sin(w * x)

    chain = CheckpointedChain(step, 9, plan=plan)
    chain(torch.ones(3)).sum().backward()

    assert len(seen) == chain.plan.evaluations == evaluations
    if plan == "nodes":
        assert seen[9:] == list(range(7, -1, -1))


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


def test_hooks_of_a_parameter_fire_once_with_the_whole_gradient():
    w = torch.randn(4, requires_grad=True)
    calls = []
    w.register_hook(lambda g: calls.append(g.clone()) or 2 * g)
    x = torch.randn(4)
    plain(lambda x, i: torch.tanh(x * w), 5, x).sum().backward()
    expected, w.grad = w.grad, None

    CheckpointedChain(lambda x, i: torch.tanh(x * w), 5)(x).sum().backward()

    assert len(calls) == 2
    assert torch.equal(calls[0], calls[1])
    assert torch.equal(w.grad, expected)


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


def test_a_tensor_that_cannot_be_found_is_served_when_it_is_named():
    hidden = vars(__import__("sys").modules[__name__])["Hid" + "den"]
    w = hidden.tensors[0]

    def step(x, i):
        return torch.sin(x * vars(__import__("sys").modules[__name__])["Hid" + "den"].tensors[0])

    got = torch.autograd.grad(CheckpointedChain(step, 4, params=[w])(torch.ones(3, 2)).sum(), w)

    assert torch.equal(got[0], torch.autograd.grad(plain(step, 4, torch.ones(3, 2)).sum(), w)[0])


def test_a_parameter_changed_in_place_is_refused_with_the_step():
    w = torch.ones(3, requires_grad=True)
    loss = CheckpointedChain(lambda x, i: torch.sin(w + x), 5)(torch.ones(3)).sum()
    with torch.no_grad():
        w += 1

    with pytest.raises(RuntimeError, match=r"in place|inplace"):
        loss.backward()


def test_a_parameter_changed_where_the_kept_graph_does_not_need_it_is_refused_too():
    w = torch.ones(3, requires_grad=True)
    loss = CheckpointedChain(lambda x, i: x + w if i == 4 else x * w, 5)(torch.ones(3)).sum()
    with torch.no_grad():
        w += 1

    with pytest.raises(ChangedTensorError, match="step 3"):
        loss.backward()


def test_a_step_that_changes_its_state_in_place_is_refused():
    w = torch.ones(3, requires_grad=True)

    def step(x, i):
        x.mul_(2)
        return x * w

    with pytest.raises(ChainError, match="Step 0 changed its input"):
        CheckpointedChain(step, 3)(torch.ones(3))


@pytest.mark.parametrize("named", [True, False])
def test_a_recomputed_step_draws_the_noise_of_the_first_run_and_leaves_no_trace(named):
    w = torch.tensor(0.8, requires_grad=True)
    generator = torch.Generator() if named else torch.default_generator

    def step(x, i):
        return torch.dropout(torch.sin(w * x) * torch.randn(5, generator=generator), 0.3, True)

    def run(loop):
        generator.manual_seed(3)
        torch.default_generator.manual_seed(4)
        y = loop()
        middle = generator.get_state()
        g = torch.autograd.grad(y.sum(), w)[0]
        return y, g, middle, generator.get_state(), torch.get_rng_state()

    expected = run(lambda: plain(step, 6, torch.ones(5)))
    got = run(
        lambda: CheckpointedChain(step, 6, generators=[generator] if named else [])(torch.ones(5))
    )
    assert all(map(torch.equal, got, expected))


def test_a_stateful_step_is_refused_with_its_index():
    w = torch.tensor(0.8, requires_grad=True)
    calls = []

    def step(x, i):
        calls.append(i)
        return torch.sin(w * x) + len(calls)

    with pytest.raises(ReplayError, match=r"Step 4 .*difference"):
        CheckpointedChain(step, 6)(torch.ones(5)).sum().backward()


def test_autocast_in_the_first_run_is_autocast_in_the_rerun():
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
    x = torch.randn(4, 8)

    def step(x, i):
        return x + net(x).float()

    def run(loop):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            y = loop()
        y.square().sum().backward()
        return [y, *(p.grad for p in net.parameters())]

    expected = run(lambda: plain(step, 5, x))
    assert all(map(torch.equal, run(lambda: CheckpointedChain(step, 5)(x)), expected))


def test_a_weight_cast_before_without_a_graph_still_gets_its_gradient():
    net = torch.nn.Linear(8, 8)
    x = torch.randn(4, 8)

    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            net(x)
        CheckpointedChain(lambda x, i: net(x).float(), 3)(x).sum().backward()

    assert net.weight.grad is not None
    assert net.weight.grad.abs().max() > 0


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


def test_a_hidden_tensor_with_a_graph_is_refused_where_nothing_else_needs_a_gradient():
    vault = itertools.repeat(torch.sin(torch.ones(5, requires_grad=True)))

    with pytest.raises(CapturedTensorError, match=r"Step 0 .*\(5,\)"):
        CheckpointedChain(lambda x, i: x * next(vault), 3)(torch.ones(5))


def test_backward_twice_gives_the_same_twice():
    w = torch.randn(3, requires_grad=True)
    loss = CheckpointedChain(lambda x, i: torch.sin(w * x), 5)(torch.ones(3)).sum()

    first = torch.autograd.grad(loss, w, retain_graph=True)[0]
    second = torch.autograd.grad(loss, w)[0]

    assert torch.equal(first, second)


# Torch's own forward-mode AD warns that one of its parts is deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
def test_torch_func_sees_the_plain_loop():
    chain = CheckpointedChain(lambda x, i: torch.sin(x * 1.3), 4)
    x = torch.randn(3)

    J = torch.func.jacrev(chain)(x)
    _, tangent = torch.func.jvp(chain, (x,), (torch.ones(3),))

    torch.testing.assert_close(J.sum(1), tangent)


def test_graph_memory_is_flat_in_the_number_of_steps_but_for_the_nodes():
    w = torch.randn(64, 64, requires_grad=True)

    def step(x, i):
        for _ in range(10):
            x = torch.tanh(x @ w / 8)
        return x

    def peak(M, run):
        x = torch.randn(32, 64)
        with meter() as reading:
            run(M, x).sum().backward()
        w.grad = None
        return reading.peak_bytes

    node = 32 * 64 * 4
    peaks = [peak(M, lambda M, x: CheckpointedChain(step, M)(x)) for M in (5, 10, 20)]
    loops = [peak(M, lambda M, x: plain(step, M, x)) for M in (5, 10, 20)]
    assert peaks[1] - peaks[0] == 5 * node
    assert peaks[2] - peaks[1] == 10 * node
    assert loops[2] - loops[1] >= 10 * 10 * node


def test_nodes_and_graphs_are_freed_by_backward_and_without_the_collector():
    class Big(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(8))

        def forward(self, x, i):
            return torch.tanh(self.w * x)

    net = Big()
    gc.disable()
    try:
        loss = CheckpointedChain(net, 5)(torch.ones(8)).sum()
        loss.backward()
        with meter() as reading:
            for _ in range(20):
                CheckpointedChain(net, 5)(torch.ones(8)).sum().backward()
            net.w.grad = None
        assert reading.live_bytes == 0
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps.*at least 1, got 0"),
        ({"num_steps": 2.5}, ValueError, "num_steps"),
        ({"step": 3}, TypeError, "step.*callable"),
        ({"plan": "node"}, ValueError, "'nodes', 'graph'.*'node'"),
        ({"params": torch.ones(1)}, TypeError, r"params=\[tensor\]"),
        ({"verify": "no"}, ValueError, "verify"),
    ],
)
def test_bad_arguments_are_refused_by_name(changes, error, message):
    good = {"step": lambda x, i: x, "num_steps": 3}

    with pytest.raises(error, match=message):
        CheckpointedChain(**{**good, **changes})
