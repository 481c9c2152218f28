"""A fresh reconstructor learns what is there to see, and nothing else."""

from dataclasses import replace

import pytest
import torch
from hdiscovery.directions.pairs import pairs
from hdiscovery.directions.trained_run import TrainedRun
from hdiscovery.evaluation.fresh import train_fresh
from hdiscovery.evaluation.kept_pairs import PairBank


def test_it_learns_directions_that_can_be_seen(toy, patterns):
    state = torch.get_rng_state()

    fresh = train_fresh(toy(4 * patterns), train_pairs=400, test_pairs=100, steps=150)

    assert torch.equal(torch.get_rng_state(), state)
    assert fresh.test.pairs == 100
    assert fresh.test.rca_large_shifts > 0.9
    assert fresh.test.shift_error < 0.5
    assert not fresh.R.training


def test_directions_that_do_nothing_leave_it_at_chance(toy, patterns):
    fresh = train_fresh(toy(0 * patterns), train_pairs=300, test_pairs=200, steps=60)

    assert fresh.test.rca < 1 / 3 + 0.12
    assert fresh.test.shift_error > 0.8  # a constant 0 is off by S/2 = 1


def test_it_is_the_same_by_the_same_seed(toy, patterns):
    a, b, c = (
        train_fresh(toy(patterns), train_pairs=32, test_pairs=8, steps=3, seed=seed).R.state_dict()
        for seed in (1, 1, 2)
    )

    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_it_sees_pairs_as_the_run_does(toy, patterns):
    subject = toy(patterns)
    as_they_are, moved = (
        train_fresh(
            replace(subject, run=TrainedRun(subject.run.config.replace(r_augment=augment))),
            train_pairs=32,
            test_pairs=8,
            steps=3,
        )
        for augment in (False, True)
    )

    a, b = as_they_are.R.state_dict(), moved.R.state_dict()
    assert not all(torch.equal(a[name], b[name]) for name in a)


def test_pairs_held_out_are_none_of_those_it_was_trained_on(toy, patterns):
    bank = PairBank.of(toy(patterns), 10, seed=1)

    train, test = bank.split(7)

    assert (len(train), len(test)) == (7, 3)
    assert torch.equal(torch.cat([train.s, test.s]), bank.s)
    torch.testing.assert_close(bank.shifted - bank.x_0, bank.s[:, None, None, None]
                               * patterns[bank.k], atol=1e-6, rtol=1e-5)  # fmt: skip


def test_pairs_that_are_there_already_are_not_made_again(toy, patterns):
    def made_by_itself(*_):
        raise AssertionError("it has pairs")

    subject = toy(4 * patterns)
    drawn = list(pairs(subject, 40, seed=1 + 1_000_003, batch_size=16))
    without = replace(subject, sampler=replace(subject.sampler, seen=made_by_itself))

    own = train_fresh(subject, train_pairs=32, test_pairs=8, steps=3, seed=1)
    given = train_fresh(without, train_pairs=32, test_pairs=8, steps=3, seed=1, drawn=drawn)

    assert (given.test, given.train) == (own.test, own.train)


@pytest.mark.parametrize("held_out", [7, 9])
def test_pairs_of_another_number_are_refused(toy, patterns, held_out):
    drawn = pairs(toy(patterns), 40, seed=5)

    expected = f"expected {32 + held_out}: 32 to train on and {held_out} held out"
    with pytest.raises(ValueError, match=f"has 40 pairs, {expected}"):
        train_fresh(toy(patterns), train_pairs=32, test_pairs=held_out, steps=1, drawn=drawn)


def test_sizes_out_of_range_are_named(toy, patterns):
    with pytest.raises(ValueError, match="`train_pairs` must be at least 2, got 1"):
        train_fresh(toy(patterns), train_pairs=1, test_pairs=1)
