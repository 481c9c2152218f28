"""States of a trajectory are tensors of one graph: hooks, `.grad` and partial passes to the bit."""

import gc
import weakref

import pytest
import torch

from chainograd import ChainError, CheckpointedChain, ReplayError, binomial, keep_last
from chainograd.metering import meter
from chainograd.truncation.cotangents import scaled
from tests.problems import Counted, Net, states_of

M = 6
OPTIONS = {
    "nodes": {},
    "graph": {"plan": "graph"},
    "last 3": {"plan": keep_last(M, 3)},
    "1 slot": {"plan": binomial(M, slots=1)},
    "2 slots": {"plan": binomial(M, slots=2)},
    "bytes": {"plan": 6000},  # a few nodes, or graphs
    "host": {"store": "host"},
    "host, 2 slots": {"store": "host", "plan": binomial(M, slots=2)},
    "not frozen": {"frozen": "off"},
}
with_every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


class Uses(torch.nn.Module):
    """Uses its state three times and its weight twice; hands a leaf on, and leaves one alone."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        w = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        self.w = torch.nn.Parameter(w / 2)

    def forward(self, x, i, c):
        y = torch.tanh(x["a"] @ self.w + 0.1 * x["c"]) * torch.rand_like(x["a"])
        a = x["a"] + 0.3 * torch.sin(y @ self.w.T) * x["a"] * c + 0.1 * x["b"]
        return {"a": a, "b": torch.cos(x["a"]), "c": x["c"], "i": x["i"] + 1}


def start():
    generator = torch.Generator().manual_seed(1)
    made = torch.randn(3, 3, 4, generator=generator, dtype=torch.float64)
    a, b, c = (each.clone().requires_grad_() for each in made)
    return {"a": a, "b": 1 * b, "c": c, "i": 0}, c.new_full((4,), 0.7).requires_grad_(), b


def loss_on(states, places):
    return sum((states[i]["a"] * states[i]["b"]).square().sum() for i in places)


class Run:
    """One forward pass, of a chain or of the plain loop, with all that is seen of its gradients."""

    def __init__(self, trajectory, net=Uses):
        torch.manual_seed(2)
        self.net = net()
        self.calls = []
        self.net.w.register_hook(lambda g: self.calls.append(g.clone()))
        x, self.c, self.b = start()
        self.x = x["a"], x["c"], self.b
        self.states = trajectory(self.net, x, self.c)

    @property
    def leaves(self):
        return [*self.x, self.c, self.net.w]

    def found(self):
        return [*[leaf.grad for leaf in self.leaves], *self.calls]


def plain(net, x, c):
    return states_of(net, M, x, c)


def by_chain(**options):
    return lambda net, x, c: CheckpointedChain(net, M, **options).trajectory(x, c)


def same(got, expected):
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert (g is None) == (e is None)
        assert g is None or torch.equal(g, e)


def whole(run):
    loss_on(run.states, [2, 4, M]).backward()


def in_between(run):
    keys = [run.states[i][key] for i in (1, 3, M) for key in "ab"]
    return torch.autograd.grad(loss_on(run.states, [3, M]), [*keys, run.net.w, run.x[0]])


def retained(run):
    kept = [run.states[i][key] for i in range(1, M + 1) for key in "ab"]
    for each in kept:
        each.retain_grad()
    loss_on(run.states, [2, 3, M]).backward()
    return [each.grad for each in kept]


def hooked(run):
    seen = {}

    def halving(i):
        def halve(g):
            seen["a", i] = g.clone()
            return g / 2

        return halve

    def note(i):
        return lambda g: seen.update({("c", i): g.clone()})

    for i in (1, 2, 4, M):
        run.states[i]["a"].register_hook(halving(i))
        run.states[i]["c"].register_hook(note(i))
    loss_on(run.states, [1, 2, M]).backward()
    return [seen[key] for key in sorted(seen)]


def early(run):
    loss_on(run.states, [1, 3]).backward()


def early_then_late(run):
    loss_on(run.states, [3]).backward(retain_graph=True)
    loss_on(run.states, [2, M]).backward()


def late_then_early(run):
    loss_on(run.states, [M]).backward(retain_graph=True)
    loss_on(run.states, [1, 3]).backward(retain_graph=True)
    loss_on(run.states, [3, 5]).backward()


def part_then_on(run, keep=False):
    at = run.states[3]
    gs = torch.autograd.grad(loss_on(run.states, [4, M]), [at["a"], at["b"]], retain_graph=keep)
    torch.autograd.backward([at["a"], at["b"]], gs)
    return gs


def part_then_on_and_again(run):
    first = part_then_on_kept(run)
    at = run.states[2]["a"]
    return [*first, *torch.autograd.grad(loss_on(run.states, [3, M]), [at, run.net.w])]


def part_then_on_kept(run):
    at = run.states[3]
    loss = loss_on(run.states, [4, M])
    gs = torch.autograd.grad(loss, [at["a"], at["b"]], retain_graph=True)
    torch.autograd.backward([at["a"], at["b"]], gs, retain_graph=True)
    return gs


def part_then_before(run):
    (g,) = torch.autograd.grad(loss_on(run.states, [4, M]), [run.states[4]["a"]])
    run.states[3]["a"].sum().backward()
    return [g]


def part_by_part(run):
    # Each segment frees itself; the last one ends at x_T.
    gs = torch.autograd.grad(loss_on(run.states, [M]), [run.states[4][k] for k in "ab"])
    for i in (2, 1):
        after, before = run.states[2 * i], run.states[2 * i - 2]
        ends = [before[k] for k in "ab"] if i > 1 else [run.x[0], run.b]
        gs = torch.autograd.grad([after["a"], after["b"]], ends, gs)
    return gs


def chosen(run):
    into = [run.states[2]["a"], run.states[4]["a"]]
    for each in into:
        each.retain_grad()
    loss_on(run.states, [3, M]).backward(inputs=[*into, run.net.w])
    return [each.grad for each in into]


def batched(run):
    at = run.states[2]["a"]
    vs = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    last = run.states[M]["a"] + run.states[4]["a"]
    gs = torch.autograd.grad(last, [at, run.x[0], run.net.w], vs, is_grads_batched=True)
    run.calls.clear()  # a batch of gradients, which cannot be looked at any more
    return gs


PASSES = [whole, in_between, retained, hooked, early, early_then_late, late_then_early,
          part_then_on, part_then_on_kept, part_then_on_and_again, part_then_before, part_by_part,
          chosen, batched]  # fmt: skip


def observed(run, what):
    found = what(run) or ()
    return [*found, *run.found()]


@with_every_option
@pytest.mark.parametrize("what", PASSES, ids=lambda what: what.__name__)
def test_all_that_is_seen_of_gradients_is_as_in_the_plain_loop(what, options):
    same(observed(Run(by_chain(**options)), what), observed(Run(plain), what))


def test_nodes_in_a_folder_give_the_same(tmp_path):
    options = {"store": tmp_path, "plan": binomial(M, slots=2)}
    for what in (retained, part_by_part, late_then_early):
        same(observed(Run(by_chain(**options)), what), observed(Run(plain), what))


def first_and_second(run):
    at = [run.states[i][key] for i in (2, 4) for key in "ab"]
    loss = loss_on(run.states, [2, 4, M])
    gs = torch.autograd.grad(loss, [*at, *run.leaves], create_graph=True)
    run.calls.clear()
    sum(g.square().sum() for g in gs).backward(retain_graph=True)
    return gs, run.found()


def third(run):
    (g,) = torch.autograd.grad(loss_on(run.states, [3, M]), [run.states[2]["a"]], create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), [run.states[1]["a"]], create_graph=True)
    h.square().sum().backward()
    return [g], [h, *run.found()]


@with_every_option
@pytest.mark.parametrize("what", [first_and_second, third], ids=lambda what: what.__name__)
def test_further_derivatives_are_those_of_the_plain_loop(what, options):
    (first, more), (expected, expected_more) = (
        what(Run(by_chain(**options))), what(Run(plain)))  # fmt: skip

    same(first, expected)
    # Here the loop adds up gradients of first and second derivatives in one place.
    torch.testing.assert_close(more, expected_more, rtol=1e-11, atol=1e-11)


def test_a_second_derivative_runs_no_step_again_more_than_twice():
    for options in OPTIONS.values():
        x, c, _ = start()
        step = Counted(Uses())
        states = CheckpointedChain(step, M, **options).trajectory(x, c)
        step.runs.clear()
        torch.autograd.grad(loss_on(states, [M]), c, create_graph=True)

        assert max(map(step.runs.count, range(M))) <= 2


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
def test_steps_that_the_gradient_may_not_pass_part_the_states(steps, options):
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
def test_slices_are_equal_to_rounding(size):
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


def counted(plan="nodes"):
    x, c, _ = start()
    step = Counted(Uses())
    states = CheckpointedChain(step, M, plan=plan).trajectory(x, c)
    step.runs.clear()
    return states, step.runs


@pytest.mark.parametrize("plan", ["nodes", "graph", binomial(M, slots=2), binomial(M, slots=1)],
                         ids=["nodes", "graph", "2 slots", "1 slot"])  # fmt: skip
def test_passes_from_part_to_part_run_no_more_steps_than_one_pass(plan):
    states, runs = counted(plan)
    loss_on(states, [M]).backward()
    once = list(runs)
    states, runs = counted(plan)
    gs = torch.autograd.grad(loss_on(states, [M]), [states[3]["a"], states[3]["b"]])
    torch.autograd.backward([states[3]["a"], states[3]["b"]], gs)

    assert runs == once


@pytest.mark.parametrize("plan", ["nodes", "graph", binomial(M, slots=2), binomial(M, slots=1)],
                         ids=["nodes", "graph", "2 slots", "1 slot"])  # fmt: skip
def test_steps_behind_the_last_loss_are_not_run_again(plan):
    states, runs = counted(plan)
    loss_on(states, [1, 3]).backward(retain_graph=True)

    assert all(i < 3 for i in runs)


def test_an_early_loss_leaves_kept_graphs_to_later_passes():
    states, runs = counted("graph")
    loss_on(states, [2]).backward(retain_graph=True)
    loss_on(states, [M]).backward()

    assert sorted(runs) == [0, 1]  # whose graphs the first pass freed


def test_what_a_pass_has_freed_is_refused_and_the_rest_is_not():
    states, _ = counted()
    loss = loss_on(states, [M])
    torch.autograd.grad(loss, states[4]["a"])

    with pytest.raises(RuntimeError, match="retain_graph=True"):
        torch.autograd.grad(loss_on(states, [M]), states[4]["a"])
    loss_on(states, [4]).backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss_on(states, [1]).backward()


def test_a_pass_that_fails_in_a_hook_of_the_caller_can_be_done_from_there():
    run, expected = Run(by_chain()), Run(plain)
    for each in (run, expected):
        failing = each.states[3]["a"].register_hook(lambda g: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loss_on(each.states, [M]).backward()
        failing.remove()
        loss_on(each.states, [2]).backward()

    same(run.found(), expected.found())


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


def test_a_partial_pass_frees_the_nodes_behind_it():
    x = torch.ones(1000, requires_grad=True)
    states = CheckpointedChain(lambda x, i: torch.sin(x), M).trajectory(x)
    run = states[M].grad_fn.link.run
    torch.autograd.grad(states[M].sum(), states[3])

    assert sorted(run.memory.nodes) == [0, 1, 2, 3]
    assert not run.memory.graphs


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


def test_a_transform_is_applied_once_however_the_passes_are_parted():
    def gradients(parted):
        w = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
        x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        seen = []

        def transform(i, g):
            seen.append(i)
            return g * 0.5

        step = lambda x, i: w * x * x  # noqa: E731
        states = CheckpointedChain(step, 4, grad_transform=transform).trajectory(x)
        if parted:
            (g,) = torch.autograd.grad(states[4] + 2 * states[2], states[2])
            states[2].backward(g)
            assert seen == [3, 2, 1, 0]
            return g, x.grad
        states[2].retain_grad()
        (states[4] + 2 * states[2]).backward()
        assert seen == [3, 2, 1, 0]
        return states[2].grad, x.grad

    (g, of_x), (expected, expected_of_x) = gradients(True), gradients(False)

    assert torch.equal(g, expected)
    assert torch.equal(of_x, expected_of_x)


def test_the_report_has_the_norms_of_whole_cotangents():
    w = torch.tensor(0.5, requires_grad=True)
    x = torch.ones((), requires_grad=True)
    chain = CheckpointedChain(lambda x, i: w * x + 0 * x, 3)
    states = chain.trajectory(x)
    (states[3] + states[2]).backward()

    assert [step.cotangent_norm for step in chain.report().steps] == [0.375, 0.75, 1.5]


def test_create_graph_with_a_transform_or_with_batched_gradients_is_refused():
    x = torch.ones(2, requires_grad=True)
    step = lambda x, i: torch.sin(x)  # noqa: E731
    states = CheckpointedChain(step, 3, grad_transform=scaled(0.5)).trajectory(x)
    with pytest.raises(ChainError, match="grad_transform"):
        torch.autograd.grad(states[3].sum(), states[1], create_graph=True)
    states = CheckpointedChain(step, 3).trajectory(x)
    with pytest.raises(ChainError, match="is_grads_batched"):
        torch.autograd.grad(
            states[3], states[1], torch.eye(2), is_grads_batched=True, create_graph=True
        )


def test_a_step_that_is_not_repeatable_is_refused_in_a_part_of_the_chain():
    calls = []
    w = torch.ones((), requires_grad=True)

    def step(x, i):
        calls.append(i)
        return torch.sin(w * x) + (0.1 * calls.count(i) if i == 2 else 0)

    states = CheckpointedChain(step, M).trajectory(torch.ones(2))
    (g,) = torch.autograd.grad(states[M].sum(), states[3])
    with pytest.raises(ReplayError, match="Step 2"):
        states[3].backward(g)


def test_a_chain_of_many_steps_is_let_go_without_recursion():
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


def test_gradients_are_handed_over_and_not_copied():
    w = torch.randn(64, 64, requires_grad=True)
    upstream = torch.ones(2, 64, requires_grad=True)
    x = upstream * 2
    states = CheckpointedChain(lambda x, i: torch.tanh(x @ w), M).trajectory(x)
    held = []
    x.register_hook(lambda g: held.append(reading.live_bytes))
    with meter("cpu") as reading:
        states[M].sum().backward(retain_graph=True)

    # The gradient of w and those of x and upstream: no node, and w's only once.
    assert held[0] <= w.nbytes + 4 * x.nbytes
    assert reading.live_bytes <= w.nbytes + 2 * x.nbytes
