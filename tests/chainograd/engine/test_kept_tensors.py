"""Tensors that a step computes and keeps for later steps: right, or refused, never silent."""

import pytest
import torch
from torch import nn

from chainograd import ChainError, CheckpointedChain, keep_last
from tests.problems import Counted, plain

M = 4
WAYS = {
    "nodes": {},
    "graph": {"plan": "graph"},
    "last 2": {"plan": keep_last(M, 2)},
    "bytes": {"plan": "1MiB"},
    "slices": {"micro_batch": 1},
    "frozen": {"frozen": "auto"},
}


class Merged(nn.Module):
    """Merges adapter weights once and keeps them, as inference code does."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3))
        self.a, self.b = (nn.Parameter(torch.randn(*shape)) for shape in ((3, 1), (1, 3)))
        self.merged = None

    def forward(self, x, i):
        if self.merged is None:
            self.merged = self.w + self.a @ self.b
        return torch.tanh(x @ self.merged)


class AnewEachTime(Merged):
    """Keeps them for a run."""

    def forward(self, x, i):
        if i == 0:
            self.merged = None
        return super().forward(x, i)


class OfTheState(nn.Module):
    """Keeps something that the first state was made into."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3))

    def forward(self, x, i):
        if i == 0:
            self.first = x @ self.w
        return torch.tanh(x @ self.w + self.first)


@pytest.mark.parametrize("make", [Merged, AnewEachTime, OfTheState])
@pytest.mark.parametrize("wanted", [True, False], ids=["x wanted", "x not wanted"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_kept_tensor_that_a_later_step_uses_is_refused(make, wanted, way):
    chain = CheckpointedChain(make().double(), M, **way)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=wanted)

    with pytest.raises(ChainError, match=r"computed \(by \w+\) and kept"):
        chain(x)
    if make is not Merged:
        with pytest.raises(ChainError, match=r"computed \(by \w+\) and kept"):
            chain(x)
    elif way.get("plan") != "graph":  # it was made in the call before, whose graphs save nothing
        with pytest.raises(ChainError, match=r"after the step was over|and kept"):
            chain(x).square().sum().backward()


def test_the_refusal_names_the_steps_and_the_operation():
    with pytest.raises(ChainError, match=r"Step 1 uses a tensor that step 0 computed \(by Add\)"):
        CheckpointedChain(Merged(), M)(torch.ones(2, 3, requires_grad=True))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_kept_tensor_without_a_gradient_may_be_used(way):
    w = torch.randn(3, 3, requires_grad=True)
    kept = {}

    def step(x, i):
        if "table" not in kept:
            kept["table"] = torch.arange(3.0).sin()
            kept["mean"] = (w @ w).mean().detach()
        return torch.tanh(x @ w + kept["table"] + kept["mean"])

    x = torch.randn(2, 3, requires_grad=True)
    expected = torch.autograd.grad(plain(step, M, x).sum(), (x, w))
    got = torch.autograd.grad(CheckpointedChain(step, M, **way)(x).sum(), (x, w))

    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_tensor_that_is_kept_and_not_used_again_does_no_harm(way):
    net, features = nn.Linear(3, 3), []
    net.register_forward_hook(lambda module, given, out: features.append(out))
    x = torch.randn(2, 3, requires_grad=True)

    CheckpointedChain(lambda x, i: torch.tanh(net(x)), M, **way)(x).sum().backward()

    assert x.grad.abs().max() > 0
    assert len(features) >= M


def test_steps_that_the_gradient_does_not_pass_may_keep_anything():
    step = AnewEachTime()
    x = torch.randn(2, 3)

    y = CheckpointedChain(step, M, grad_steps=2)(x)

    assert not y.requires_grad
    assert torch.equal(y, plain(step, M, x))


def test_every_first_run_records_a_graph_and_no_step_runs_more_often_for_it():
    net = nn.Linear(3, 3)
    graphs = []

    def step(x, i):
        graphs.append(torch.is_grad_enabled())
        return torch.tanh(net(x))

    counted = Counted(step)
    chain = CheckpointedChain(counted, M)
    for _ in range(2):
        chain(torch.randn(2, 3, requires_grad=True)).sum().backward()

    assert len(counted.runs) == 2 * (2 * M - 1)
    assert all(graphs)


def test_kept_tensors_are_seen_under_hooks_on_saved_tensors():
    chain = CheckpointedChain(AnewEachTime(), M)
    x = torch.randn(2, 3, requires_grad=True)

    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    with hooks, pytest.raises(ChainError, match="and kept"):
        chain(x)


@pytest.mark.parametrize("first", range(M - 1))
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_tensor_is_found_whichever_step_first_keeps_it(first, way):
    torch.manual_seed(0)
    net, control, kept, condition = nn.Linear(3, 3), nn.Linear(2, 3), {}, torch.randn(2, 2)

    def step(x, i):
        if i == first:
            kept["e"] = torch.sin(control(condition))
        return torch.tanh(net(x) + (kept["e"] if i >= first else 0))

    x = torch.randn(2, 3)
    slices = f"Step {first} returned a different"  # the first uses what the second keeps
    with pytest.raises(ChainError, match=f"{slices}|uses a tensor that step {first} .* kept"):
        CheckpointedChain(step, M, **way)(x)
    found = CheckpointedChain(step, M).check(x)
    assert "kept tensor" in {finding.kind for finding in found}


def test_a_loss_on_what_a_step_kept_is_refused():
    net = nn.Linear(3, 3)
    features = []

    def step(x, i):
        features.append(torch.tanh(net(x)))
        return x + features[-1]

    for plan in ("nodes", "graph"):
        features.clear()
        y = CheckpointedChain(step, M, plan=plan)(torch.randn(2, 3, requires_grad=True))
        with pytest.raises(RuntimeError, match=r"after the step was over|second time"):
            (y.sum() + features[1].sum()).backward()


def test_a_loss_on_what_a_step_kept_is_refused_where_its_graph_saves_nothing():
    w = torch.ones(3, requires_grad=True)
    features = []

    def step(x, i):
        features.append((x + w).sum())
        return torch.tanh(x + w)

    for plan in ("nodes", "graph"):
        features.clear()
        y = CheckpointedChain(step, M, plan=plan)(torch.randn(2, 3, requires_grad=True))
        with pytest.raises(ChainError, match="after the step was over"):
            (y.sum() + features[1]).backward()
