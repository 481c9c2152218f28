"""No case is silently wrong, every case has the expected outcome, and the page shows it."""

import json

import pytest

from tests.correctness.cases import CASES, missing
from tests.correctness.judge import judged, of_ours, right, seen, worst
from tests.correctness.table import JSON, OURS, PAGE, page
from tests.correctness.ways import PEERS


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.key, marks=[pytest.mark.slow] if c.slow else []) for c in CASES],
)
def test_a_case_is_as_expected_under_every_plan(case):
    if absent := missing(case):
        pytest.skip(f"{absent} is not installed")

    outcomes = of_ours(case)

    silent = {name: o.detail for name, o in outcomes.items() if o.kind == "silently wrong"}
    assert not silent
    assert worst(outcomes.values()).kind == case.expected, outcomes


def test_there_are_forty_cases_and_each_has_a_name_of_its_own():
    assert len({case.key for case in CASES}) == len(CASES) >= 40
    assert all(case.what.endswith(".") for case in CASES)


def test_a_case_that_is_not_simply_right_is_explained():
    assert not [c.key for c in CASES if c.expected in ("right*", "raises") and not c.why]


def test_peers_are_right_where_they_ought_to_be_and_one_is_wrong_about_a_named_generator():
    by_name = {case.key: case for case in CASES}
    plain, named = by_name["noise/the global stream"], by_name["noise/a named generator"]

    assert {judged(right(plain), seen(plain, way)).kind for way in PEERS} == {"right"}
    assert {judged(right(named), seen(named, way)).kind for way in PEERS} == {"silently wrong"}


def test_the_page_has_the_table_of_the_measured_file():
    assert page(json.loads(JSON.read_text())) in PAGE.read_text()


def test_the_measured_file_has_every_case_and_what_is_expected_of_it():
    measured = json.loads(JSON.read_text())["cases"]

    assert list(measured) == [case.key for case in CASES]
    assert {key: row["outcomes"][OURS][0] for key, row in measured.items()} == {
        case.key: case.expected for case in CASES
    }
