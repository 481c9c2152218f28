"""Toy chains whose gradients do not die along the way, and the plans that they are run under."""

import pytest
import torch

from chainograd import CheckpointedChain, binomial, keep_last

M = 7
PLANS = {
    "nodes": "nodes",
    "graph": "graph",
    "last 3": keep_last(M, 3),
    "1 slot": binomial(M, slots=1),
    "2 slots": binomial(M, slots=2),
    "3 slots": binomial(M, slots=3),
}
# A budget has no plan before the first call, so it is not among PLANS.
every_plan = pytest.mark.parametrize("plan", [*PLANS.values(), "1 MiB"], ids=[*PLANS, "1 MiB"])


def leaf(*shape):
    """Return a tensor of random numbers that requires a gradient."""
    return torch.randn(shape, requires_grad=True)


def ramp():
    """Return four numbers in double precision that require a gradient."""
    return torch.linspace(0.5, 1.2, 4, dtype=torch.float64).requires_grad_()


def plain(step, M, x, *args, **kwargs):
    """Run the plain loop: the oracle."""
    for i in range(M):
        x = step(x, i, *args, **kwargs)
    return x


def states_of(step, M, x, *args, **kwargs):
    """Run the plain loop and return all its states."""
    states = [x]
    for i in range(M):
        states.append(step(states[-1], i, *args, **kwargs))
    return states


def same_gradients(step, inputs, plan, loop=plain):
    """See that a chain has the loss and the gradients of a loop, bit for bit."""
    outcomes = []
    for run in (lambda x: loop(step, M, x), CheckpointedChain(step, M, plan=plan)):
        loss = run(inputs[0]).float().square().sum()
        outcomes.append([loss, *torch.autograd.grad(loss, inputs)])
    assert all(map(torch.equal, *outcomes))


class Net(torch.nn.Module):
    """Uses its weight twice a step, so that the order of sums shows in the last bit."""

    def __init__(self, dim, dtype):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(dim, dim, dtype=dtype) / dim**0.5)
        self.b = torch.nn.Parameter(torch.randn(dim, dtype=dtype))

    def forward(self, x, i, c=None):
        """Return the next state."""
        y = torch.tanh(x @ self.w + self.b + (0 if c is None else c))
        return x + 0.3 * torch.tanh(y @ self.w.T + i / 10) * (1 if c is None else 1 + c)


class Noisy(Net):
    """Adds noise, multiplies by noise and drops out, all from the global stream."""

    def forward(self, x, i, c=None):
        """Return the next state."""
        x = super().forward(x, i, c)
        x = x + 0.1 * torch.randn_like(x) + x * 0.1 * torch.rand_like(x)
        return torch.nn.functional.dropout(x, 0.2)


class Counted:
    """Counts how often each step is run."""

    def __init__(self, step):
        self.step, self.runs = step, []

    def __call__(self, x, i, *args, **kwargs):
        """Run the step."""
        self.runs.append(i)
        return self.step(x, i, *args, **kwargs)


class Wide(torch.nn.Module):
    """A step whose graph is much larger than its state, and twice as large every third time."""

    def __init__(self):
        super().__init__()
        self.into = torch.nn.Linear(32, 512)
        self.back = torch.nn.Linear(512, 32)

    def forward(self, x, i):
        """Return the next state."""
        for _ in range(2 if i % 3 == 0 else 1):
            x = x + 0.1 * self.back(torch.tanh(self.into(x)))
        return x
