"""Training curves beside what knowing nothing would give."""

import math

import pytest
from hdiscovery.pages.curves import training_curves


def records(num_steps):
    return [
        {"step": i, "L_G": 0.7, "cross_entropy": 3 / (i + 1), "shift_error": 1.0, "seconds": 0.1}
        for i in range(num_steps)
    ]


def test_a_value_that_is_not_finite_leaves_a_hole_in_its_curve_only():
    holed = records(20)
    holed[5]["L_G"] = math.nan
    del holed[7]["L_G"]

    L_G, cross_entropy, _ = training_curves(holed, K=4, S=2.0)

    assert "over 18 records" in L_G.description
    assert "over 20 records" in cross_entropy.description


def test_a_long_training_is_drawn_as_small_as_a_short_one():
    (short, *_), (long, *_) = (training_curves(records(n), K=4, S=2.0) for n in (600, 30_000))

    assert len(long.svg) < 1.2 * len(short.svg)


def test_a_record_without_a_step_is_refused():
    with pytest.raises(ValueError, match="has no key 'step'"):
        training_curves([{"L_G": 0.7}], K=4, S=2.0)
