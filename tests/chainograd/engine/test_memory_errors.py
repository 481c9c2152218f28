"""Memory that runs out, injected in every place: a run that keeps no graph would finish it."""

import weakref

import pytest
import torch

from chainograd import CheckpointedChain, keep_last
from chainograd.plans.planners import keep_graphs
from tests.problems import Counted, M, plain


class Full:
    """Runs out of memory once, at the n-th call that fits."""

    def __init__(self, fits):
        self.fits, self.left = fits, 1

    def __call__(self, *seen):
        if self.left and self.fits(*seen):
            self.left = 0
            raise torch.OutOfMemoryError("injected")


class Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, i, full):
        ctx.i, ctx.full = i, full
        return x * 1

    @staticmethod
    def backward(ctx, g):
        ctx.full(ctx.i)
        return g, None, None


def gradient(run, w):
    return torch.autograd.grad(run(torch.ones(3)).sum(), w)[0]


@pytest.mark.parametrize(
    ("plan", "fits"),
    [
        (keep_graphs(M, frozenset({1, 2, 4})), lambda i, back, grad: i == 3 and not back),
        ("graph", lambda i, back, grad: i == 3),
        (keep_graphs(M, frozenset({1, 2, 4})), lambda i, back, grad: back and grad),
    ],
    ids=["run without a graph", "recorded", "recorded on the way back"],
)
def test_wherever_a_step_runs_out_of_memory_kept_graphs_are_dropped(plan, fits):
    w = torch.full((3,), 0.9, requires_grad=True)
    net = torch.nn.BatchNorm1d(3, affine=False).double()
    full, calls = Full(fits), []

    def step(x, i):
        net(torch.arange(6.0).double().reshape(2, 3))
        y = torch.sin(w * x) + torch.rand(3)
        full(i, len(calls) >= M, torch.is_grad_enabled())
        calls.append(i)
        return y

    torch.manual_seed(1)
    expected = gradient(lambda x: plain(lambda x, i: torch.sin(w * x) + torch.rand(3), M, x), w)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="Memory ran out"):
        got = gradient(CheckpointedChain(step, M, plan=plan), w)

    assert full.left == 0
    assert torch.equal(got, expected)
    assert net.num_batches_tracked == M  # also of the step that was run anew


@pytest.mark.parametrize("plan", ["graph", keep_last(M, M - 1)], ids=["graph", "all but one"])
def test_a_backward_pass_that_runs_out_of_memory_begins_its_step_again(plan):
    w = torch.full((3,), 0.9, requires_grad=True)
    expected = gradient(lambda x: plain(lambda x, i: torch.sin(w * x), M, x), w)
    full = Full(lambda i: i == 3)

    with pytest.warns(UserWarning, match="Memory ran out at step 3"):
        got = gradient(
            CheckpointedChain(lambda x, i: Back.apply(torch.sin(w * x), i, full), M, plan=plan), w
        )

    assert torch.equal(got, expected)


def test_a_half_freed_graph_is_gone_before_its_step_runs_again():
    w = torch.full((3,), 0.9, requires_grad=True)
    full, given = Full(lambda i: i == 3), []

    def step(x, i):
        if i == 3:
            assert all(ref() is None for ref in given), "the graph that failed is still there"
        y = Back.apply(torch.sin(w * x), i, full)
        if i == 3:
            given.append(weakref.ref(y))
        return y

    with pytest.warns(UserWarning, match="Memory ran out at step 3"):
        gradient(CheckpointedChain(step, M, plan="graph"), w)

    assert len(given) == 2


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


def test_the_caller_learns_of_memory_that_runs_out_with_no_graph_to_drop():
    w = torch.ones((), requires_grad=True)

    def step(x, i):
        if i == 2:
            raise torch.OutOfMemoryError("injected")
        return w * x

    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        CheckpointedChain(step, 5)(torch.ones(2))
