"""Who marks which direction, for all numbers of raters and directions."""

from collections import Counter
from itertools import combinations

import pytest
from hdiscovery.mos.assignment import assign, codes
from hypothesis import given
from hypothesis import strategies as st

directions = st.integers(1, 60)


@given(K=directions, seed=st.integers(0, 5), data=st.data())
def test_each_direction_goes_to_two_raters_and_loads_differ_by_one_at_most(K, seed, data):
    raters = data.draw(st.integers(2, 2 * K))

    work = assign(K, raters, seed=seed)

    assert len(work) == raters
    assert all(len(set(own)) == len(own) for own in work)
    assert Counter(k for own in work for k in own) == dict.fromkeys(range(K), 2)
    assert max(map(len, work)) - min(map(len, work)) <= 1


def test_the_same_seed_gives_the_same_work_and_another_seed_other_work():
    assert assign(32, 16, seed=3) == assign(32, 16, seed=3)
    assert assign(32, 16, seed=3) != assign(32, 16, seed=4)


def test_raters_share_directions_with_many_others():
    work = [set(own) for own in assign(256, 16, seed=0)]

    pairs = sum(bool(a & b) for a, b in combinations(work, 2))
    assert pairs > 80  # of 120


def test_directions_do_not_come_in_the_order_of_their_numbers():
    assert not any(own == sorted(own) for own in assign(64, 4, seed=0))


@pytest.mark.parametrize(
    ("K", "raters", "message"),
    [
        (8, 1, "`raters` must be at least 2.* got 1"),
        (3, 7, "too many: 3 directions have 6 marks"),
    ],
)
def test_too_few_and_too_many_raters_are_refused(K, raters, message):
    with pytest.raises(ValueError, match=message):
        assign(K, raters, seed=0)


@given(K=directions, seed=st.integers(0, 100))
def test_codes_are_different_and_spell_nothing(K, seed):
    found = codes(K, seed=seed)

    assert len(set(found)) == K
    assert not set("".join(found)) & set("AEIOUY")
