"""Ways to go back through a trajectory, run on a chain and on the plain loop."""

import pytest
import torch

from chainograd import CheckpointedChain, binomial, keep_last
from tests.problems import states_of

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
