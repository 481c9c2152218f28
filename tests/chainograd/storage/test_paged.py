"""Tensors of graphs in a store: each comes back as it was, whatever became of its memory."""

import pytest
import torch

from chainograd import ChangedTensorError, Store
from chainograd.state import State
from chainograd.storage.kept_tensors import InPlace

SIZE = 8192  # numbers that are worth a transfer


@pytest.fixture
def keeper(tmp_path):
    """Return what keeps tensors in a folder."""
    store, x_T = Store(tmp_path), State.of(torch.zeros(1))
    storage = store.storage(x_T, lambda: 0)
    yield store.keeper(storage, x_T.device, [])
    storage.close()


def test_a_tensor_comes_back_as_it_was_when_it_was_kept(keeper):
    x = torch.randn(SIZE)
    expected = x.clone()
    kept = keeper.keep([x])

    x.add_(1)
    again = keeper.keep([x])

    assert torch.equal(kept.load()[0], expected)
    assert torch.equal(again.load()[0], expected + 1)


def test_a_tensor_is_stored_once(keeper):
    x = torch.randn(SIZE)

    uses = [keeper.keep([each]) for each in (x, x, x.detach())]

    assert keeper.stored_bytes == x.nbytes
    assert all(torch.equal(use.load()[0], x) for use in uses)


def test_views_of_one_memory_come_back_each_as_it_is(keeper):
    z = torch.randn(SIZE, dtype=torch.complex64)
    views = [z, z.conj(), z.real, z.imag, z.conj().imag, z[1:], z.view(2, -1)]

    uses = [keeper.keep([view]) for view in views]

    assert all(torch.equal(use.load()[0], view) for use, view in zip(uses, views, strict=True))


def test_memory_that_another_tensor_takes_over_is_told_apart(keeper):
    uses, expected = [], []

    for _ in range(20):
        z = torch.randn(SIZE, dtype=torch.complex64)
        uses += [keeper.keep([z.real]), keeper.keep([z.imag])]
        expected += [z.real.clone(), z.imag.clone()]
        del z

    assert all(torch.equal(use.load()[0], e) for use, e in zip(uses, expected, strict=True))


def test_a_tensor_that_is_kept_in_place_must_not_change():
    x = torch.randn(4)
    kept = InPlace().keep([x])
    x.add_(1)

    with pytest.raises(ChangedTensorError, match="changed in place after the block ran"):
        kept.load()
