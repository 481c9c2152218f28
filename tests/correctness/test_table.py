"""No case is silently wrong, each comes out as expected, and the page says what came out."""

import json
import warnings

import pytest
import torch

from tests.correctness.case import Case, gradients, leaf, square
from tests.correctness.cases import CASES, missing
from tests.correctness.judge import Outcome, Seen, judged, of_ours, right, seen, worst
from tests.correctness.table import JSON, OURS, PAGE, page
from tests.correctness.ways import LOOP, PEERS, step_by_step


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


def test_what_is_not_simply_right_is_explained():
    assert not [c.key for c in CASES if c.expected in ("right*", "raises") and not c.why]


def _toy(run):
    w, x, unused = leaf(4, 4), leaf(3, 4), leaf(2)
    return gradients(square(run(lambda x, i: torch.tanh(x @ w), 3, x)), w=w, x=x, unused=unused)


TOY = Case(_toy, "toy")


def _refusing(step):
    def refused(x, i):
        raise ValueError("No. Not today.")

    return refused


def _noticed(step):
    def run(x, i):
        warnings.warn("something is odd", UserWarning, stacklevel=1)
        return 1.01 * step(x, i)

    return run


@pytest.mark.parametrize(
    ("wrapped", "outcome"),
    [
        (lambda step: step, Outcome("right")),
        (lambda step: lambda x, i: step(x, i) * (1 + 2**-22), "right*"),
        (_refusing, Outcome("raises", "ValueError: No")),
        (lambda step: lambda x, i: 1.01 * step(x, i), "silently wrong"),
        (lambda step: lambda x, i: step(x, i) + 0 * x.sum() / 0, "silently wrong"),
        (lambda step: lambda x, i: step(x.detach(), i), "silently wrong"),
        (lambda step: lambda x, i: step(x, i).double(), "raises"),
    ],
    ids=["the loop", "rounding", "an error", "1 % off", "nan", "detached", "another error"],
)
def test_the_judge_tells_every_outcome_from_the_others(wrapped, outcome):
    found = judged(right(TOY), seen(TOY, step_by_step("a way", wrapped)))

    assert outcome in (found, found.kind)


def test_a_missing_gradient_is_silently_wrong_and_so_is_one_that_the_loop_has_not():
    values = right(TOY)[0].values

    lost = judged(right(TOY), Seen({**values, "w": None}))
    more = judged(right(TOY), Seen({**values, "unused": torch.zeros(2)}))

    assert lost == Outcome("silently wrong", "no gradient for w")
    assert more == Outcome("silently wrong", "a gradient for unused where the loop has none")


def test_a_wrong_gradient_that_torch_warned_of_says_so():
    found = judged(right(TOY), seen(TOY, step_by_step("a way", _noticed)))

    assert found.kind == "silently wrong"
    assert found.detail.endswith("with a warning")


def test_where_the_loop_raises_a_number_is_silently_wrong():
    refused = [seen(TOY, step_by_step("a way", _refusing))]

    assert judged(refused, refused[0]).kind == "raises (as the loop)"
    assert judged(refused, right(TOY)[0]).kind == "silently wrong"


def test_one_oracle_of_several_suffices():
    refused = seen(TOY, step_by_step("a way", _refusing))

    assert judged([refused, *right(TOY)], right(TOY)[0]) == Outcome("right")


def test_of_several_plans_the_worst_counts():
    outcomes = [Outcome("right"), Outcome("silently wrong"), Outcome("raises")]

    assert worst(outcomes).kind == "silently wrong"


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.key)
def test_a_run_of_a_case_leaves_no_trace_and_the_next_one_sees_the_same(case):
    before = torch.get_rng_state()

    first, second = seen(case, LOOP), seen(case, LOOP)

    assert judged([first], second) == Outcome("right")
    assert torch.equal(torch.get_rng_state(), before)


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
