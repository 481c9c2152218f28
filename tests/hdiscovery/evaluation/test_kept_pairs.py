"""Pairs that several measures look at are made once."""

from dataclasses import replace

import pytest
import torch
from hdiscovery.directions.pairs import pairs
from hdiscovery.evaluation import kept_pairs
from hdiscovery.evaluation.bench import MEASURES, Bench
from hdiscovery.evaluation.kept_pairs import KeptPairs
from hdiscovery.evaluation.settings import Sizes, Sources


def columns(batches):
    return [torch.cat(column) for column in zip(*batches, strict=True)]


def assert_same(a, b):
    assert all(map(torch.equal, columns(a), columns(b)))


@pytest.fixture
def counted(toy, patterns):
    """A subject, and how many of its samples were shifted."""
    subject, made = toy(4 * patterns), []
    return replace(subject, sampler=replace(subject.sampler, seen=made.append)), made


@pytest.mark.parametrize("few", [5, 64, 70])
def test_a_larger_count_begins_with_the_pairs_of_a_smaller_one(toy, patterns, few):
    subject = toy(4 * patterns)
    many = columns(pairs(subject, 100, seed=3, batch_size=16))

    first = columns(pairs(subject, few, seed=3))
    rest = columns(pairs(subject, 100 - few, seed=3, first=few))

    for whole, a, b in zip(many, first, rest, strict=True):
        assert torch.equal(whole[:few], a)
        assert torch.equal(whole[few:], b)


@pytest.mark.parametrize("counts", [(10, 30), (30, 10), (30, 30), (7, 25)])
def test_a_pair_is_made_once_whichever_measure_comes_first(counted, counts):
    subject, made = counted
    kept = KeptPairs(subject, seed=3, batch_size=4)

    for count in counts:
        assert_same(kept.first(count), pairs(subject, count, seed=3))
        made[-1:] = []  # that of the comparison

    assert sum(made) == max(counts)


def test_a_fresh_reconstructor_learns_from_pairs_that_are_there(counted):
    subject, made = counted
    subject = replace(subject, R=subject.training().new_reconstructor(subject.dm.image_shape))
    sizes = Sizes(pairs=20, fresh_pairs=24, fresh_steps=1)
    bench = Bench(subject, sizes, Sources(), lambda _: iter, subject.R)

    MEASURES["rca"](bench)
    of = MEASURES["fresh"](bench)

    assert (of["train"]["pairs"], of["test"]["pairs"]) == (24, 6)
    assert sum(made) == 30


@pytest.mark.parametrize("bound", [0, 3000])
def test_what_memory_does_not_hold_is_made_again_and_the_same(counted, monkeypatch, bound):
    subject, made = counted
    monkeypatch.setattr(kept_pairs, "KEPT_BYTES", bound)
    kept = KeptPairs(subject, seed=3, batch_size=4)
    expected = list(pairs(subject, 30, seed=3))
    made.clear()

    for _ in range(2):
        assert_same(kept.first(30), expected)

    assert 30 < sum(made) <= 60
    assert sum(column.nbytes for pair in kept.kept for column in pair) <= bound
