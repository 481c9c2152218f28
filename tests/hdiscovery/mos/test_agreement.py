"""Agreement against examples worked out in the literature."""

import pytest
from hdiscovery.mos.agreement import krippendorff_alpha, raw_agreement
from hypothesis import given
from hypothesis import strategies as st


def test_alpha_of_two_observers_and_binary_data_is_that_of_krippendorff_2011_a():
    meg, owen = (0, 1, 0, 0, 0, 0, 0, 0, 1, 0), (1, 1, 1, 0, 0, 1, 0, 0, 0, 0)

    assert krippendorff_alpha(zip(meg, owen, strict=True)) == pytest.approx(0.095, abs=5e-4)


def test_alpha_of_four_observers_with_gaps_is_that_of_krippendorff_2011_c():
    observers = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = [[v for v in unit if v != "."] for unit in zip(*observers, strict=True)]

    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_full_agreement_is_one_and_full_disagreement_is_below_chance():
    assert krippendorff_alpha([(0, 0), (1, 1)]) == 1
    assert krippendorff_alpha([(0, 1), (1, 0)]) == pytest.approx(-0.5)


@pytest.mark.parametrize("units", [[], [(1,), (0,)], [(1, 1), (1, 1), (0,)]])
def test_where_no_compared_values_differ_there_is_no_alpha(units):
    assert krippendorff_alpha(units) is None


def test_raw_agreement_is_the_share_of_equal_pairs():
    assert raw_agreement([(1, 1), (0, 1), (0, 0), (0, 0), (1,)]) == 0.75
    assert raw_agreement([(1, 1, 0)]) == pytest.approx(1 / 3)
    assert raw_agreement([(1,), ()]) is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_neither_the_order_of_raters_nor_of_units_matters(units):
    turned = [unit[::-1] for unit in reversed(units)]

    assert krippendorff_alpha(turned) == pytest.approx(krippendorff_alpha(units))
