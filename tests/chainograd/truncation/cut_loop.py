"""The plain loop, cut by hand where the gradient may not pass."""

import torch

from tests.problems import M


def cut(step, steps, x, *args):
    """The plain loop, with the result of every step that is not among ``steps`` detached."""
    states = [x]
    for i in range(M):
        x = step(x, i, *args)
        states.append(x if i in steps else x.detach())
        x = states[-1]
    return states


def equal(got, expected):
    pairs = list(zip(got, expected, strict=True))
    assert [g is None for g, _ in pairs] == [e is None for _, e in pairs]
    assert all(torch.equal(g, e) for g, e in pairs if g is not None)


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)
