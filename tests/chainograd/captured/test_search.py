"""A tensor that no search reaches is refused."""

import functools
import itertools

import pytest
import torch

from chainograd import ChainError, CheckpointedChain
from tests.chainograd.captured.held import PLANS, M, weight


def opaque(held):
    """Return ways to hold a tensor that nothing leads to."""
    yield lambda: next(held)
    generator = (w for w in held)
    yield lambda: next(generator)
    mapped = map(torch.sin, held)
    yield lambda: next(mapped)
    names = {"get": lambda: next(held)}
    yield functools.lru_cache(lambda: names["get"]())


@pytest.mark.parametrize("known", [True, False], ids=["from x", "not from x"])
@pytest.mark.parametrize("way", range(4), ids=["iterator", "generator", "map", "cache"])
def test_a_tensor_that_no_search_reaches_is_refused(way, known):
    w = weight()
    get = [*opaque(itertools.repeat(w))][way]
    x = torch.randn(4, 8, requires_grad=known)

    for plan in PLANS.values():
        with pytest.raises(ChainError, match=r"cannot see|kept"):
            CheckpointedChain(lambda x, i: torch.tanh(get() * x), M, plan=plan)(x).sum().backward()
