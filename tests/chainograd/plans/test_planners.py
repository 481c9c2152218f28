"""Plans carried out on integers, against the closed forms of their papers."""

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainograd import binomial, keep_last
from chainograd.plans import planners
from chainograd.plans.plan import Advance, Backprop, Drop, Keep, Load, Record
from tests.chainograd.plans.on_paper import run_on_paper


@pytest.mark.parametrize("slots", range(1, 21))
def test_a_binomial_plan_meets_the_closed_form_within_its_slots(slots):
    for M in range(1, 201):
        plan = binomial(M, slots=slots)
        reversed_, evaluations = run_on_paper(plan)

        r = next(r for r in range(M + 1) if comb(slots + r, slots) >= M)
        assert evaluations == plan.evaluations == (r + 1) * M - comb(slots + r, slots + 1)
        assert reversed_ == list(reversed(range(M)))
        assert plan.nodes <= slots
        assert plan.graphs == 1


@given(st.integers(1, 60), st.data())
def test_the_last_k_graphs_are_kept_and_their_steps_not_run_again(M, data):
    k = data.draw(st.integers(1, M))
    plan = keep_last(M, k)

    reversed_, evaluations = run_on_paper(plan)

    assert evaluations == 2 * M - k
    assert reversed_ == list(reversed(range(M)))
    assert (plan.nodes, plan.graphs) == (M, k)
    assert {a.index for a in plan.forward if isinstance(a, Record)} == set(range(M - k, M))


def test_the_named_plans_are_the_ends_of_keep_last():
    assert planners.nodes(7) == keep_last(7, 1)
    assert planners.graph(7) == keep_last(7, 7)


def test_the_order_of_a_small_plan_is_the_one_worked_out_by_hand():
    # b(2, 1) = 3 < 4 <= b(2, 2) = 6: r = 2, of which the first part takes one step at least.
    plan = binomial(4, slots=2)

    assert plan.forward == (
        Keep(0), Advance(0), Keep(1), Advance(1), Advance(2), Record(3)
    )  # fmt: skip
    assert plan.backward == (
        Backprop(3), Load(1), Advance(1), Record(2), Backprop(2), Load(1), Record(1), Backprop(1),
        Drop(1), Load(0), Record(0), Backprop(0), Drop(0),
    )  # fmt: skip


@pytest.mark.parametrize("M", [1000, 10_000])
def test_long_plans_are_made_without_recursion(M):
    assert binomial(M, slots=M // 2).evaluations < 3 * M
    assert binomial(M, slots=20).nodes <= 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: binomial(0, slots=1), "`num_steps` must be at least 1, got 0"),
        (lambda: binomial(5, slots=0), "`slots` must be at least 1.*got 0"),
        (lambda: keep_last(5, 0), "`k` must lie in 1 … `num_steps` = 5, got 0"),
        (lambda: keep_last(5, 6), "got 6"),
    ],
)
def test_numbers_that_no_plan_can_have_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
