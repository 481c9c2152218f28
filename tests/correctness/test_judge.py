"""The judge of the table: right, right to rounding, raises and silently wrong are told apart."""

import warnings

import pytest
import torch

from tests.correctness.case import Case, gradients, leaf, square
from tests.correctness.cases import CASES
from tests.correctness.judge import Outcome, Seen, judged, right, seen, worst
from tests.correctness.ways import LOOP, step_by_step


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
