"""The memory of a run: its nodes and the graph of one step, and nothing once it is over."""

import gc
import weakref
from contextlib import suppress

import pytest
import torch

from chainograd import CheckpointedChain, binomial, meter
from tests.problems import PLANS, M, Net, plain


def test_a_binomial_plan_takes_the_memory_of_its_slots():
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


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_after_the_backward_pass_the_result_holds_only_its_own_memory(plan):
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


def test_each_further_step_takes_the_memory_of_one_state():
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


@pytest.mark.parametrize("end", ["backward", "forgotten", "failed"])
@pytest.mark.parametrize(
    "options",
    [{}, {"plan": binomial(M, slots=2)}, {"micro_batch": 1}, {"frozen": "auto"}, {"plan": "1MiB"}],
    ids=["nodes", "2 slots", "slices", "frozen", "bytes"],
)
def test_a_thousand_runs_leave_nothing_behind(options, end):
    w = torch.ones(3, requires_grad=True)
    failing = {"now": False}

    def step(x, i):
        if failing["now"] and i == 1:
            raise ValueError("stop")
        return torch.tanh(w * x)

    chain = CheckpointedChain(step, M, **options)
    x = torch.ones(2, 3)

    def once():
        failing["now"] = False
        loss = chain(x).sum()
        if end == "backward":
            torch.autograd.grad(loss, w)
        elif end == "failed":
            failing["now"] = True
            with suppress(ValueError):
                torch.autograd.grad(loss, w)

    for _ in range(3):
        with meter():  # which imports some things late
            once()
    gc.collect()
    gc.disable()
    try:
        things = len(gc.get_objects())
        with meter() as reading:
            for _ in range(1000 if not options else 100):
                once()
        assert reading.live_bytes == 0
        assert len(gc.get_objects()) - things < 60  # the report of the last run, a meter
    finally:
        gc.enable()


def test_a_forward_pass_takes_the_memory_of_its_states_and_one_step_without_a_graph():
    w, x, peaks = torch.randn(64, 4096, requires_grad=True), torch.randn(64, 64), []

    def step(x, i):
        if i == M - 1:  # whose graph is kept
            peaks.append(whole.peak_bytes)
        h = x @ w
        for _ in range(8):
            h = torch.sin(h)
        return torch.tanh(h @ w.t())

    chain = CheckpointedChain(step, M)
    with meter() as alone, torch.no_grad():
        step(x, 0)
    with meter() as whole:
        y = chain(x)

    assert y.requires_grad
    nodes = M * x.nbytes
    assert peaks[0] <= alone.peak_bytes + nodes + (1 << 17)
