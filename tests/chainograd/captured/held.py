"""Ways to hold a tensor that a step uses, and whether gradients reach it there."""

import io

import torch
from torch import nn

from chainograd import CheckpointedChain, binomial
from tests.problems import plain

M = 6

PLANS = {"graph": "graph", "nodes": "nodes", "2 slots": binomial(M, slots=2)}


def weight():
    return torch.randn(8, requires_grad=True)


def layers():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh())


def around(net):
    return (lambda x, i: x + 0.3 * net(x)), list(net.parameters())


def times(get):
    w = get()
    return (lambda x, i: torch.tanh(get() * x)), [w]


def loaded(module):
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


KEPT = []  # by somebody else


def kept_elsewhere(thing):
    globals()["KE" + "PT"].append(thing)
    return thing


def register(cases):
    """Return a decorator that adds a function to ``cases`` by its name in words.

    The function returns a step, and the tensors that the step uses and that require a gradient.
    """

    def case(make):
        cases[make.__name__.replace("_", " ")] = make
        return make

    return case


def assert_gradients_reach(make, known):
    """See that tensors that a step holds get the gradients of the plain loop under every plan.

    Args:
        make: Returns the step and its tensors.
        known: Whether the first state requires a gradient too.
    """
    torch.manual_seed(0)
    step, tensors = make()
    x = torch.randn(4, 8, requires_grad=known)
    head = nn.Linear(8, 1)
    wanted = [*tensors, *head.parameters(), *([x] if known else [])]

    def gradients(run):
        return torch.autograd.grad(head(run(x)).sum(), wanted)

    for _ in range(3):  # TorchScript compiles in its first runs, and a loop is not yet itself
        expected = gradients(lambda x: plain(step, M, x))
    for plan in PLANS.values():
        got = gradients(CheckpointedChain(step, M, plan=plan))
        assert all(map(torch.equal, got, expected))
    assert all(g.abs().max() > 0 for g in expected)
