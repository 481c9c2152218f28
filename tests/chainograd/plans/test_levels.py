"""Levels: on random costs, carried out on integers."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainograd import Budget, GraphCost, Level, StepCost, keep_last, within
from chainograd.plans.planners import resolve
from chainograd.plans.restrict import restricted, without_graphs

CUT, ATTENDED = Level.BLOCKS, Level.BLOCKS | Level.ATTENTION
few, some = st.integers(0, 20), st.integers(0, 60)


@st.composite
def costs(draw, away=False):
    """Steps that are alike, with graphs that are smaller and slower at other levels."""
    node, light, more = draw(few), draw(few), draw(some)
    whole = light + more
    stored = draw(few) if away else 0
    forward, saved = draw(st.integers(10, 50)), draw(st.integers(0, 9))
    graphs = []
    for level, seconds in ((CUT, forward), (ATTENDED, forward - saved)):
        extra = draw(few) if level is ATTENDED else 0
        size = light + extra
        for kept in (False, True):
            held = draw(few) if kept and away else size
            graphs.append(
                GraphCost(
                    level, kept, held, held + draw(few), held + draw(few), 1.0 + seconds,
                    stored_bytes=stored if kept else 0,
                )
            )  # fmt: skip
    attention = GraphCost(
        Level.ATTENTION, False, whole, whole + draw(few), whole + draw(few), 1.0 - saved,
        attention_bytes=draw(few),
    )  # fmt: skip
    cost = StepCost(
        node, node, whole, node + draw(few), whole + draw(few), whole + draw(few), draw(few),
        forward, 1.0, stored_bytes=0 if away else None, graphs=(*graphs, attention),
        fits=draw(st.booleans()),
    )  # fmt: skip
    return (cost,) * draw(st.integers(1, 8))


@settings(deadline=None, max_examples=12)
@given(costs())
def test_more_budget_never_takes_longer_and_is_never_exceeded(costs):
    M, before = len(costs), None
    least = min(resolve(name, M).with_costs(costs).peak_bytes for name in ("blocks", "skeleton"))
    for budget in range(max(least, 1), least + 70 * M, 11):
        plan = within(budget, costs)
        assert plan.peak_bytes <= budget
        assert before is None or plan.seconds <= before
        before = plan.seconds


@settings(deadline=None, max_examples=12)
@given(costs(away=True), st.integers(1, 400))
def test_a_plan_stays_within_what_the_host_has(costs, host):
    try:
        plan = within(Budget(10_000, host=host), costs)
    except ValueError:
        return

    assert plan.stored_bytes <= host


@settings(deadline=None, max_examples=12)
@given(costs(), st.data())
def test_named_plans_are_never_faster_within_their_own_bytes(costs, data):
    name = data.draw(st.sampled_from(["blocks", "skeleton", "blocks+attention"]))
    named = resolve(name, len(costs)).with_costs(costs)

    assert within(max(named.peak_bytes, 1), costs).seconds <= named.seconds


def test_a_step_whose_whole_graph_does_not_fit_is_cut():
    cut = [GraphCost(CUT, kept, 10, 12, 20, 2.0) for kept in (False, True)]
    cost = StepCost(1, 1, 1000, 5, 1000, 1000, graphs=tuple(cut))

    levels = within(60, (cost,) * 6).levels

    assert set(levels) <= {"blocks", "skeleton"}


def test_steps_that_the_backward_pass_comes_to_last_have_room_for_whole_graphs():
    cut = [GraphCost(CUT, kept, 10, 12, 20, 2.0) for kept in (False, True)]
    cost = StepCost(1, 1, 30, 5, 30, 30, graphs=tuple(cut))

    levels = within(35, (cost,) * 6).levels

    assert levels == ("node", "blocks", "blocks", "blocks", "blocks", "skeleton")


def test_levels_have_names():
    plan = keep_last(3, 1)

    assert plan.levels == ("node", "node", "graph")
    assert plan.with_levels(CUT).levels == ("blocks", "blocks", "skeleton")
    assert plan.with_levels(Level.ATTENTION).levels == ("node+attention", "node+attention", "graph")
    assert not plan.is_cut
    assert plan.with_levels(CUT).is_cut


def test_plans_with_other_levels_differ():
    plan = keep_last(3, 1)

    assert plan.with_levels(CUT) != plan
    assert plan.with_levels(CUT).with_levels(Level.WHOLE) == plan


def test_changes_of_a_plan_keep_its_levels():
    plan = keep_last(4, 2).with_levels([CUT, Level.WHOLE, ATTENDED, CUT])

    assert restricted(plan, frozenset({2, 3})).program.levels == plan.program.levels
    assert without_graphs(plan).program.levels == plan.program.levels


def test_levels_that_are_not_one_a_step_are_refused():
    with pytest.raises(ValueError, match="`levels` has 2 entries, but the plan has 3 steps"):
        keep_last(3, 1).with_levels([CUT, CUT])
    with pytest.raises(TypeError, match="must be `Level` values, got 1"):
        keep_last(2, 1).with_levels([1, 1])  # type: ignore[list-item]


def test_bytes_at_a_level_that_was_not_measured_are_refused():
    costs = (StepCost(1, 1, 1, 1, 1, 1),) * 2

    with pytest.raises(ValueError, match="not known at the level"):
        _ = keep_last(2, 1).with_levels(CUT).with_costs(costs).peak_bytes


def test_the_peak_counts_what_blocks_hold_while_the_cotangent_passes():
    cut = [GraphCost(CUT, kept, 10, 12, 500, 2.0) for kept in (False, True)]
    cost = StepCost(0, 0, 1000, 0, 1000, 1000, graphs=tuple(cut))
    plan = keep_last(3, 1).with_levels(CUT).with_costs((cost,) * 3)

    assert plan.peak_bytes == 500


def test_attention_that_is_kept_counts_until_its_step_has_passed():
    graph = GraphCost(Level.ATTENTION, False, 100, 100, 100, 0.5, attention_bytes=7)
    cost = StepCost(0, 0, 100, 0, 100, 100, graphs=(graph,))
    plan = keep_last(4, 1).with_levels(Level.ATTENTION).with_costs((cost,) * 4)

    assert plan.peak_bytes == 3 * 7 + 100
    assert plan.seconds == replace(plan, costs=(cost,) * 4).seconds


def test_a_budget_below_all_nodes_needs_no_blocks_where_attention_could_be_kept():
    graph = GraphCost(Level.ATTENTION, False, 10, 10, 10, 0.5, attention_bytes=7)
    cost = StepCost(10, 10, 10, 10, 10, 10, graphs=(graph,))

    plan = within(75, (cost,) * 8)

    assert plan.nodes < 8
    assert plan.peak_bytes <= 75
