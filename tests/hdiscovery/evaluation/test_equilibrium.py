"""Alarms on records that were written by hand."""

import math

import pytest
from hdiscovery.evaluation.equilibrium import findings, measure_equilibrium

LN_2 = math.log(2)


def records(count, *, L_G=LN_2, L_D=2 * LN_2, cross_entropy=0.5, accuracy=0.9, first=0):
    values = {"L_G": L_G, "L_D": L_D, "cross_entropy": cross_entropy, "accuracy": accuracy}
    return [{"step": first + i, **values} for i in range(count)]


def test_in_equilibrium_nothing_is_found_and_both_ratios_are_one():
    found = measure_equilibrium(records(300), K=8)

    assert found.findings == []
    assert found.L_G_over_ln2 == pytest.approx(1)
    assert found.L_D_over_2ln2 == pytest.approx(1)


def test_collapse_is_where_d_and_r_both_know_everything():
    """Fig. 3: every sample becomes a pattern that says k and s."""
    history = records(100) + records(100, L_G=6.0, L_D=0.01, accuracy=0.99, first=100)

    (found,) = findings(history, K=8)

    assert found.name == "collapse"
    assert 100 <= found.step <= 150  # within a window of where it began
    assert "6.00" in found.text


def test_where_d_knows_and_r_does_not_d_overpowers():
    (found,) = findings(records(60, L_G=4.0, L_D=0.05, accuracy=0.13), K=8)

    assert found.name == "D-overpowers"


def test_a_d_that_is_fooled_is_found():
    (found,) = findings(records(60, L_G=0.1, L_D=3.0), K=8)

    assert found.name == "D-fooled"


@pytest.mark.parametrize(("steps", "names"), [(150, []), (250, ["R-not-learning"])])
def test_a_reconstructor_has_200_steps_before_guessing_is_an_alarm(steps, names):
    history = records(steps, cross_entropy=math.log(8), accuracy=1 / 8)

    assert [found.name for found in findings(history, K=8)] == names


def test_what_was_wrong_and_is_not_any_more_is_no_finding_but_stays_in_the_largest():
    history = records(60, L_G=5.0, L_D=0.1) + records(60, first=60)

    found = measure_equilibrium(history, K=8)

    assert found.findings == []
    assert found.largest_L_G == pytest.approx(5.0)


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    history = [*records(3), {**records(1)[0], "step": 3, "L_D": math.nan}]

    (found,) = findings(history, K=8)

    assert (found.name, found.step) == ("not-finite", 3)
    assert "L_D is nan" in found.text


def test_no_records_are_refused():
    with pytest.raises(ValueError, match="not been trained"):
        measure_equilibrium([], K=8)
