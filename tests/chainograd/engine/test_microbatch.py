"""`micro_batch`: steps over slices of the batch, a loss over the whole of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chainograd import ChainError, CheckpointedChain, ReplayError, binomial, keep_last, meter
from chainograd.plans.plan import Backprop, Record
from chainograd.plans.planners import keep_graphs
from chainograd.plans.restrict import without_graphs
from tests.problems import Counted, Net, Noisy, plain

M = 5
PLANS = {
    "nodes": "nodes",
    "last 1": keep_last(M, 1),
    "1 slot": binomial(M, slots=1),
    "2 slots": binomial(M, slots=2),
    "bytes": "2 MiB",
}


class Head(torch.nn.Module):
    """A loss in which every sample depends on all others."""

    def __init__(self, dim):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(dim, dtype=torch.float64)
        self.out = torch.nn.Linear(dim, 3, dtype=torch.float64)

    def forward(self, x):
        return torch.nn.functional.cross_entropy(self.out(self.norm(x)), torch.arange(len(x)) % 3)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
def test_a_loss_over_the_whole_batch_has_the_plain_gradient(plan, size):
    torch.manual_seed(0)
    net, head = Net(8, torch.float64), Head(8)
    x = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    c = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    scale = torch.ones(8, dtype=torch.float64, requires_grad=True)
    wanted = (x, c, scale, *net.parameters(), *head.parameters())

    def gradients(run):
        head.norm.reset_running_stats()
        return [*torch.autograd.grad(head(run(x, c=c * scale)), wanted), head.norm.running_mean]

    expected = gradients(lambda x, c: plain(net, M, x, c=c))
    got = gradients(CheckpointedChain(net, M, plan=plan, micro_batch=size))

    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 6), size=st.integers(1, 7), losses=st.sets(st.integers(1, M), min_size=1)
)
def test_states_of_any_structure_have_the_plain_gradient(batch, size, losses):
    w = torch.full((2,), 0.7, dtype=torch.float64, requires_grad=True)

    def step(state, i, table):
        a = torch.sin(state["a"] * w) + state["b"][:, None] * table[0, i]
        return {"a": a, "b": state["b"] + a.sum(1), "count": state["count"] + 1, "w": state["w"]}

    def gradients(run):
        a = torch.ones(batch, 2, dtype=torch.float64).cumsum(0).requires_grad_()
        table = torch.linspace(0, 1, M, dtype=torch.float64)[None].requires_grad_()
        x = {"a": a, "b": torch.zeros(batch, dtype=torch.float64), "count": 0, "w": torch.ones(())}
        states = run(x, table)
        assert states[-1]["count"] == M
        loss = sum((states[i]["a"].square().sum() + states[i]["b"].sum()) for i in losses)
        return torch.autograd.grad(loss, (a, table, w))

    def loop(x, table):
        states = [x]
        for i in range(M):
            states.append(step(states[-1], i, table))
        return states

    expected = gradients(loop)
    got = gradients(CheckpointedChain(step, M, micro_batch=size).trajectory)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)


def test_the_peak_grows_with_the_batch_by_its_states_only():
    w = torch.randn(64, 64, requires_grad=True)
    sample = 64 * 4

    def step(x, i):
        for _ in range(20):
            x = torch.tanh(x @ w / 8)
        return x

    def peak(batch, size):
        x = torch.randn(batch, 64)
        chain = CheckpointedChain(step, M, micro_batch=size)
        for _ in range(2):
            with meter() as reading:
                y = chain(x)
                torch.autograd.grad(y, w, torch.ones_like(y))
        return reading.peak_bytes

    # Nodes, the result, the cotangent given, the one on its way, the sum of its slices.
    states = M + 4
    assert peak(128, 8) - peak(64, 8) <= states * 64 * sample
    assert peak(128, 16) - peak(128, 8) >= 8 * 19 * sample  # the graph is that of a slice
    assert peak(128, None) - peak(128, 8) >= 100 * 20 * sample


@pytest.mark.parametrize("plan", [p for p in PLANS.values() if p != "2 MiB"], ids=list(PLANS)[:-1])
def test_every_step_runs_on_every_slice_as_often_as_the_plan_says(plan):
    step = Counted(Net(4, torch.float32))
    chain = CheckpointedChain(step, M, plan=plan, micro_batch=2)
    x = torch.randn(6, 4)
    chain(x)
    step.runs.clear()

    chain(x).sum().backward()

    assert len(step.runs) == 3 * chain.plan.evaluations
    if plan == "nodes":
        assert chain.plan.evaluations == 2 * M


@settings(deadline=None, max_examples=60)
@given(M=st.integers(1, 12), data=st.data())
def test_a_plan_without_graphs_records_each_step_just_before_its_backward_pass(M, data):
    plan = data.draw(
        st.one_of(
            st.integers(1, M).map(lambda s: binomial(M, slots=s)),
            st.frozensets(st.integers(0, M - 1)).map(lambda kept: keep_graphs(M, kept)),
        )
    )
    changed = without_graphs(plan)

    assert not any(isinstance(action, Record) for action in changed.forward)
    assert changed.graphs == 1
    order = [a for a in changed.backward if isinstance(a, (Record, Backprop))]
    assert order == [a for i in reversed(range(M)) for a in (Record(i), Backprop(i))]
    assert without_graphs(changed) == changed


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_noise_is_that_of_the_first_run_and_the_stream_goes_on(plan):
    net = Noisy(4, torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def by_hand(x):
        for i in range(M):
            x = torch.cat([net(part, i) for part in x.split(2)])
        return x

    def gradients(run):
        torch.manual_seed(3)
        y = run(x)
        after = torch.get_rng_state()
        grads = torch.autograd.grad(y.square().sum(), (x, net.w))
        assert torch.equal(torch.get_rng_state(), after)
        return [y, after, *grads]

    for g, e in zip(
        gradients(CheckpointedChain(net, M, plan=plan, micro_batch=2)),
        gradients(by_hand),
        strict=True,
    ):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)


def test_without_gradients_the_same_slices_run():
    net = Noisy(4, torch.float32)
    chain = CheckpointedChain(net, M, micro_batch=2)
    x = torch.randn(5, 4)
    torch.manual_seed(0)
    expected = chain(x)
    torch.manual_seed(0)

    with torch.no_grad():
        assert torch.equal(chain(x), expected)


def test_a_captured_tensor_with_a_graph_gets_its_gradient():
    w = torch.ones(4, dtype=torch.float64, requires_grad=True)
    h = torch.sin(w)
    x = torch.randn(6, 4, dtype=torch.float64)
    (got,) = torch.autograd.grad(
        CheckpointedChain(lambda x, i: torch.tanh(x * h), M, micro_batch=4)(x).sum(), w
    )

    (expected,) = torch.autograd.grad(
        plain(lambda x, i: torch.tanh(x * torch.sin(w)), M, x).sum(), w
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_second_derivatives_are_those_of_the_plain_loop():
    net = Net(3, torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def twice(run):
        (g,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), (x, net.w))

    for g, e in zip(
        twice(CheckpointedChain(net, M, micro_batch=3)),
        twice(lambda x: plain(net, M, x)),
        strict=True,
    ):
        torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-12)


def test_a_step_that_cannot_be_repeated_is_refused_by_its_index():
    w = torch.ones((), requires_grad=True)
    calls = []

    def step(x, i):
        calls.append(i)
        return torch.sin(w * x) + (1e-5 * len(calls) if i == 3 else 0)

    with pytest.raises(ReplayError, match="Step 3"):
        CheckpointedChain(step, M, micro_batch=2)(torch.ones(4)).sum().backward()


def test_samples_that_see_each_other_are_refused():
    norm = torch.nn.BatchNorm1d(4)
    x = torch.randn(8, 4)
    chain = CheckpointedChain(lambda x, i: torch.tanh(norm(x)), M, micro_batch=2)

    with pytest.raises(ChainError, match=r"micro_batch=2.*batch norm.*eval"):
        chain(x)
    norm.eval()
    chain(x).sum().backward()
    assert norm.weight.grad is not None


def test_an_argument_that_slicing_would_cut_is_refused_with_the_way_out():
    w = torch.ones((), requires_grad=True)
    chain = CheckpointedChain(lambda x, i, table: w * x * table[..., i], M, micro_batch=2)
    table = torch.linspace(1, 2, M)

    with pytest.raises(ChainError, match=r"table\[None\]"):
        chain(torch.ones(M), table)
    chain(torch.ones(M), table[None]).sum().backward()


@pytest.mark.parametrize("leaf", ["tensor", "number"])
def test_a_state_that_cannot_be_joined_is_refused(leaf):
    w = torch.ones((), requires_grad=True)

    def step(state, i):
        x, _ = state
        mean = (w * x).mean()
        return w * x, mean if leaf == "tensor" else mean.item()

    with pytest.raises(ChainError, match=r"Step 0 returned a different .* for each slice"):
        CheckpointedChain(step, M, micro_batch=2)((torch.arange(4.0), torch.zeros(())))


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "4"])
def test_other_sizes_are_refused(bad):
    with pytest.raises(ValueError, match="`micro_batch` must be a number of samples"):
        CheckpointedChain(lambda x, i: x, M, micro_batch=bad)


def test_a_state_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="no floating tensor with one"):
        CheckpointedChain(lambda x, i: x, M, micro_batch=2)(torch.ones((), requires_grad=True))


def test_a_tensor_that_is_not_sliced_gets_its_gradient_once():
    def step(state, i):
        return {"a": torch.sin(state["a"] * state["scale"]), "scale": state["scale"] * 0.9}

    def gradients(run):
        a = torch.ones(5, dtype=torch.float64).cumsum(0).requires_grad_()
        scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        end = run({"a": a, "scale": scale})
        return torch.autograd.grad(end["a"].sum() + end["scale"], (a, scale))

    expected = gradients(lambda x: plain(step, M, x))
    for g, e in zip(gradients(CheckpointedChain(step, M, micro_batch=2)), expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=0)
