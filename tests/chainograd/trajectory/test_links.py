"""States of a trajectory are tensors of one graph: hooks, `.grad` and passes to the bit."""

import gc
import weakref

import pytest
import torch

from chainograd import CheckpointedChain, binomial
from tests.chainograd.trajectory.passes import (
    PASSES,
    M,
    Run,
    Uses,
    by_chain,
    first_and_second,
    hooked,
    in_between,
    late_then_early,
    loss_on,
    observed,
    part_by_part,
    part_then_on,
    plain,
    retained,
    same,
    whole,
    with_every_option,
)
from tests.problems import Net


@with_every_option
@pytest.mark.parametrize("what", PASSES, ids=lambda what: what.__name__)
def test_all_that_is_seen_of_gradients_is_as_in_the_plain_loop(what, options):
    same(observed(Run(by_chain(**options)), what), observed(Run(plain), what))


def test_nodes_in_a_folder_give_the_same(tmp_path):
    options = {"store": tmp_path, "plan": binomial(M, slots=2)}
    for what in (retained, part_by_part, late_then_early):
        same(observed(Run(by_chain(**options)), what), observed(Run(plain), what))


def truncated(steps):
    def run(net, x, c):
        states = [x]
        for i in range(M):
            with torch.set_grad_enabled(i in steps):
                state = net(states[-1], i, c)
            if i not in steps:  # a leaf that is handed on too
                state = {k: v if k == "i" else v.detach() for k, v in state.items()}
            states.append(state)
        return states

    return run


@with_every_option
@pytest.mark.parametrize("steps", [{0, 1, 4, 5}, {0, 3}, {2, 5}, {0, 1, 2}, {5}], ids=str)
def test_no_gradient_crosses_a_step_that_it_may_not_pass(steps, options):
    def seen(run):
        seen = []
        for i in range(1, M + 1):
            if run.states[i]["a"].requires_grad:
                run.states[i]["a"].register_hook(lambda g, i=i: seen.append((i, g.clone())))
        losses = [i for i in (1, 3, 5, M) if run.states[i]["a"].requires_grad]
        loss_on(run.states, losses[-1:]).backward(retain_graph=True)
        loss_on(run.states, losses).backward()
        return seen

    runs = Run(by_chain(grad_steps=steps, **options)), Run(truncated(steps))
    got, expected = map(seen, runs)

    assert [i for i, _ in got] == [i for i, _ in expected]
    same([g for _, g in got], [g for _, g in expected])
    same(runs[0].found(), runs[1].found())


class Twins(torch.nn.Module):
    """Gives one tensor as two leaves, and a leaf of its state under another name."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.eye(4, dtype=torch.float64) + 0.1)

    def forward(self, x, i, c):
        y = torch.sin(x["a"] @ self.w) * x["b"] + x["b"] * c
        return {"a": y, "b": y, "c": x["c"]} if i % 2 else {"a": y * x["c"], "b": x["a"], "c": y}


@with_every_option
@pytest.mark.parametrize("what", [whole, retained, in_between, late_then_early, part_by_part],
                         ids=lambda what: what.__name__)  # fmt: skip
def test_a_tensor_that_is_in_two_places_has_one_gradient(what, options):
    runs = Run(by_chain(**options), Twins), Run(plain, Twins)
    got, expected = (observed(run, what) for run in runs)

    for run in runs:
        assert run.states[2]["a"] is run.states[2]["b"]
        assert run.states[1]["b"] is run.x[0]
    same(got, expected)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_slices_have_the_gradients_of_the_whole_batch_up_to_rounding(size):
    for what in (retained, part_then_on, late_then_early, hooked, first_and_second):
        # Without noise, which is that of slices.
        got, expected = (
            what(Run(trajectory, Quiet)) for trajectory in (by_chain(micro_batch=size), plain)
        )
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


class Quiet(Uses):
    """Draws no noise."""

    def forward(self, x, i, c):
        y = torch.tanh(x["a"] @ self.w + 0.1 * x["c"])
        a = x["a"] + 0.3 * torch.sin(y @ self.w.T) * x["a"] * c + 0.1 * x["b"]
        return {"a": a, "b": torch.cos(x["a"]), "c": x["c"] * 1, "i": x["i"] + 1}


@pytest.mark.parametrize("end", ["forgotten", "part", "parts", "hook", "create_graph", "early"])
def test_everything_is_freed_without_the_collector(end):
    net = Net(4, torch.float32)

    def run():
        states = CheckpointedChain(net, M).trajectory(torch.ones(2, 4))
        if end == "hook":
            states[3].register_hook(lambda g: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                states[-1].sum().backward()
        if end in ("part", "parts"):
            (g,) = torch.autograd.grad(states[-1].sum(), states[3])
        if end == "parts":
            states[3].backward(g)
        if end == "create_graph":
            torch.autograd.grad(states[-1].square().sum(), states[3], create_graph=True)
        if end == "early":
            states[3].sum().backward(retain_graph=True)
        return weakref.ref(states[2]), weakref.ref(states[4].grad_fn)

    gc.disable()
    try:
        assert [reference() for reference in run()] == [None, None]
    finally:
        gc.enable()


def test_hooks_are_called_with_gradients_only():
    w = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def step(x, i):
        return {"a": torch.sin(w * x["a"]), "b": x["b"] * w + 0 * x["a"].detach()}

    seen = []
    x = {"a": w.detach().clone().requires_grad_(), "b": w.detach().clone().requires_grad_()}
    states = CheckpointedChain(step, M).trajectory(x)
    for i in range(1, M + 1):
        states[i]["b"].register_hook(lambda g: seen.append(g))
    result = CheckpointedChain(step, M)(x)
    result["b"].register_hook(lambda g: seen.append(g))
    states[M]["a"].backward()
    result["a"].backward()

    assert not seen
    assert x["b"].grad is None


def test_a_chain_of_many_steps_is_freed_without_recursion():
    w = torch.ones((), requires_grad=True)
    states = CheckpointedChain(lambda x, i: x * w, 20_000).trajectory(torch.ones(()))
    last = states[-1]
    del states
    last.backward()

    assert w.grad == 20_000
    del last


@with_every_option
def test_a_step_that_keeps_its_state_sees_the_whole_gradient_of_it(options):
    def seen(trajectory):
        kept = {}

        class Keeping(Uses):
            def forward(self, x, i, c):
                if not x["a"].is_leaf:
                    x["a"].retain_grad()
                kept[i] = x["a"]
                return super().forward(x, i, c)

        loss_on(Run(trajectory, Keeping).states, [2, 4, M]).backward()
        return [kept[i].grad for i in range(1, M)]

    same(seen(by_chain(**options)), seen(plain))
