"""Steps with blocks, the ways in which chains cut them, and the plain loop as their oracle."""

import pytest
import torch
from torch import nn

from chainograd import CheckpointedChain, binomial, keep_last
from chainograd.plans.plan import Level
from tests.problems import plain

M = 3
DIM = 8
ROWS = 520  # enough that a state is worth a transfer to the store
SOME_OF_EACH = (Level.BLOCKS | Level.ATTENTION, Level.BLOCKS, Level.WHOLE)
CUT_PLANS = {
    "skeleton": "skeleton",
    "blocks": "blocks",
    "skeleton+attention": "skeleton+attention",
    "1 slot": binomial(M, slots=1).with_levels(Level.BLOCKS),
    "some of each": keep_last(M, 2).with_levels(SOME_OF_EACH),
}
every_cut = pytest.mark.parametrize("plan", CUT_PLANS.values(), ids=CUT_PLANS)
either_store = pytest.mark.parametrize("place", ["device", "folder"])


class Block(nn.Module):
    """Uses its weight twice, and its argument several times."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(DIM, DIM) / DIM**0.5)
        self.b = nn.Parameter(torch.randn(DIM))

    def forward(self, h):
        """Return something like the argument."""
        return h + 0.5 * torch.tanh(h @ self.w + self.b) * torch.sigmoid(h @ self.w.T)


class Net(nn.Module):
    """Calls its blocks one after the other."""

    def __init__(self, block=Block, count=2):
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(count))

    def forward(self, x, i):
        """Return the next state."""
        for block in self.blocks:
            x = block(x)
        return torch.tanh(x)


def state():
    """Return a state that requires a gradient."""
    return torch.randn(ROWS, DIM, requires_grad=True)


def store_in(place, folder):
    """Return the store that a place means."""
    return "device" if place == "device" else folder


def chain_of(net, plan, **options):
    """Return a chain whose steps are cut into a network's blocks."""
    return CheckpointedChain(net, M, plan=plan, blocks=list(net.blocks), **options)


def gradients(run, x, *others):
    """Return a run's result, its gradients, and a random number that is drawn after the run."""
    torch.manual_seed(1)
    result = run(x)
    found = torch.autograd.grad(result.float().square().sum(), (x, *others))
    return [result.detach(), *found, torch.rand(1)]


def assert_equal_to_the_loop(net, plan, *others, x=None, **options):
    """See that a chain of cut steps has the result and the gradients of the plain loop."""
    x = state() if x is None else x
    inputs = (x, *others, *(p for p in net.parameters() if p.requires_grad))
    expected = gradients(lambda x: plain(net, M, x), *inputs)

    got = gradients(chain_of(net, plan, **options), *inputs)

    assert all(map(torch.equal, got, expected))
    assert all(torch.isfinite(each).all() and each.abs().max() > 0 for each in expected)
