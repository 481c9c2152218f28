"""Whether a step that ran again returned what it returned first: its state, a digest, a sample."""

import pytest
import torch

from chainograd import CheckpointedChain, ReplayError, Store, binomial
from tests.problems import PLANS, M, leaf, same_gradients


@pytest.mark.parametrize("plan", ["nodes", binomial(M, slots=1), binomial(M, slots=3)], ids=str)
@pytest.mark.parametrize("verify", ["exact", "close"])
@pytest.mark.parametrize("place", ["device", "folder"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_other_noise_is_noticed_under_every_plan_and_store(plan, verify, place, dtype, tmp_path):
    w = torch.ones(300, requires_grad=True)
    unnamed = torch.Generator()

    def step(x, i):
        return torch.sin(w * x) + torch.randn(300, generator=unnamed)

    store = Store(tmp_path if place == "folder" else place, dtype)
    y = CheckpointedChain(step, M, plan=plan, verify=verify, store=store)(torch.ones(300))
    with pytest.raises(ReplayError, match=r"Step \d"):
        y.sum().backward()


@pytest.mark.parametrize("plan", ["nodes", binomial(M, slots=1), binomial(M, slots=3)], ids=str)
@pytest.mark.parametrize(
    "extra", [[], [float("nan"), 1.0], [float("inf"), 1.0]], ids=["empty", "nan", "inf"]
)
def test_close_accepts_empty_and_infinite_states_and_still_sees_a_difference(plan, extra):
    w = torch.ones(3, requires_grad=True)
    calls = []

    def step(state, i):
        x, extra, off = state
        calls.append(i)
        return torch.sin(w * x), extra * (1 + off * 1e-2 * len(calls)), off

    def run(off):
        state = (torch.ones(3), torch.tensor(extra), off)
        CheckpointedChain(step, M, plan=plan, verify="close")(state)[0].sum().backward()

    run(0)
    if extra:
        with pytest.raises(ReplayError):
            run(1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_a_difference_in_boolean_and_integer_tensors_is_reported(dtype):
    w = torch.ones(3, requires_grad=True)
    calls = []

    def step(state, i):
        calls.append(i)
        return torch.sin(w * state[0]), torch.tensor([len(calls) <= M]).to(dtype)

    y = CheckpointedChain(step, M)((torch.ones(3), torch.ones(1).to(dtype)))[0]
    with pytest.raises(ReplayError, match="the largest difference is 1"):
        y.sum().backward()


def test_a_stateful_step_is_refused_with_its_index():
    w = torch.tensor(0.8, requires_grad=True)
    calls = []

    def step(x, i):
        calls.append(i)
        return torch.sin(w * x) + len(calls)

    with pytest.raises(ReplayError, match=r"Step 4 .*difference"):
        CheckpointedChain(step, 6)(torch.ones(5)).sum().backward()


@pytest.mark.parametrize("plan", [PLANS["1 slot"], PLANS["2 slots"], "nodes"], ids=str)
def test_a_step_that_is_not_repeatable_is_refused_by_its_index_in_every_plan(plan):
    w = torch.ones((), requires_grad=True)
    calls = {}

    def step(x, i):
        calls[i] = calls.get(i, 0) + 1
        return torch.sin(w * x) + (1e-6 * calls[i] if i == 4 else 0)

    with pytest.raises(ReplayError, match="Step 4"):
        CheckpointedChain(step, M, plan=plan)(torch.ones(2)).sum().backward()


class Count:
    """Counts, and is nobody's own."""

    calls = 0


@pytest.fixture
def put_off(monkeypatch):
    """Let every verdict be one that is asked for later, as on an accelerator."""
    monkeypatch.setattr("chainograd.replay.verify.is_ready", lambda tensor: False)


def changing():
    """Return a step that is another one in each run."""
    w, count = torch.ones(3, requires_grad=True), Count()

    def step(x, i):
        count.calls += 1
        return torch.sin(w * x) * (1 + count.calls / 10)

    return step


@pytest.mark.parametrize("plan", ["nodes", binomial(M, slots=1)], ids=str)
@pytest.mark.parametrize("verify", ["exact", "close"])
def test_a_comparison_that_was_deferred_is_read_and_refuses(put_off, verify, plan):
    y = CheckpointedChain(changing(), M, plan=plan, verify=verify)(torch.ones(3))
    with pytest.raises(ReplayError, match="with another result"):
        y.sum().backward()


@pytest.mark.parametrize("first", [0, 2], ids=["to x_T", "to a state in the middle"])
def test_a_deferred_comparison_is_read_where_a_pass_ends(put_off, first):
    states = CheckpointedChain(changing(), M).trajectory(torch.ones(3, requires_grad=True))
    with pytest.raises(ReplayError, match="with another result"):
        torch.autograd.grad(states[-1].sum(), states[first])


def test_a_deferred_comparison_with_the_measured_state_is_read_in_the_forward_pass(put_off):
    with pytest.raises(ReplayError):
        CheckpointedChain(changing(), M, plan="1GiB")(torch.ones(3))


def test_deferred_comparisons_let_right_gradients_pass(put_off):
    w, x = leaf(3), leaf(3)

    same_gradients(lambda x, i: torch.sin(w * x), [x, w], binomial(M, slots=1))
