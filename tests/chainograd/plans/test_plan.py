"""Plans carried out on integers: the state that enters step i is i."""

import copy
import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainograd import Plan, StepCost, binomial, keep_last
from chainograd.plans import plan as plans
from chainograd.plans import planners, restrict
from tests.chainograd.plans import weighing
from tests.chainograd.plans.on_paper import run_on_paper

MiB = 2**20


@pytest.mark.parametrize("M", [1, 2, 3, 10, 57])
@pytest.mark.parametrize(
    ("name", "count"), [("nodes", lambda M: 2 * M - 1), ("graph", lambda M: M)]
)
def test_every_step_is_reversed_once_from_the_last_to_the_first(M, name, count):
    plan = planners.resolve(name, M)

    reversed_, evaluations = run_on_paper(plan)

    assert reversed_ == list(reversed(range(M)))
    assert evaluations == plan.evaluations == count(M)


def test_a_plan_for_another_length_is_refused():
    with pytest.raises(ValueError, match=r"3 steps.*has 4"):
        planners.resolve(planners.nodes(3), 4)


A, K, L, D, R, B = (
    plans.Advance, plans.Keep, plans.Load, plans.Drop, plans.Record, plans.Backprop
)  # fmt: skip
GOOD = (K(0), A(0), R(1)), (B(1), L(0), R(0), B(0), D(0))


def test_a_plan_of_ones_own_is_equal_to_a_planner_s():
    plan = Plan(2, *GOOD)

    assert plan.evaluations == 3
    assert hash(plan.forward) == hash(GOOD[0])
    assert plan.backward == GOOD[1]
    assert Plan(3, [*keep_last(3, 2).forward], [*keep_last(3, 2).backward]) == keep_last(3, 2)
    assert keep_last(3, 2) != keep_last(3, 1)
    assert keep_last(3, 2).forward[-1] == R(2)
    assert keep_last(3, 2).forward[:2] == (K(0), A(0))


@pytest.mark.parametrize(
    ("forward", "backward", "message"),
    [
        (GOOD[0], (L(0), R(0), B(0)), r"backward\[2\].*Backprop.*index=0.*Backprop\(1\) comes"),
        (GOOD[0], (B(1), L(0), R(0)), r"`backward`.*Backprop\(0\) is missing"),
        (GOOD[0], (B(1), B(0)), r"backward\[1\].*step 0 has no graph; Record\(0\) must"),
        (GOOD[0], (*GOOD[1], B(1)), r"backward\[5\].*no step is left"),
        (GOOD[0], (B(1), B(1)), r"backward\[1\].*Backprop\(0\) comes next"),
        (GOOD[0], (B(1), L(1), R(0), B(0)), r"backward\[1\].*Load.*no node 1; Keep\(1\)"),
        (GOOD[0], (B(1), D(1)), r"backward\[1\].*Drop.*no node 1"),
        (GOOD[0], (B(1), R(0), B(0)), r"backward\[1\].*no current state"),
        (GOOD[0], (L(0), R(0), A(1)), r"backward\[2\].*no current state.*after Record"),
        (GOOD[0], (L(0), A(0), R(0)), r"backward\[2\].*current state is 1; step 0 needs state 0"),
        (GOOD[0], (L(0), R(0), L(0), R(0)), r"backward\[3\].*graph of step 0 is there already"),
        (GOOD[0], (*GOOD[1][:-1], L(0), R(0)), r"`backward`.*recorded again.*no Backprop"),
        (GOOD[0], (L(0), A(0), K(0)), r"backward\[2\].*node 0 is there already"),
        (GOOD[0], (B(1), L(-1)), r"backward\[1\].*has steps 0 … 1"),
        ((A(0),), (), r"`forward`.*ends before step 1"),
        ((), (), r"`forward`.*ends before step 0"),
        ((K(0), A(1)), (), r"forward\[1\].*current state is 0; step 1 needs state 1"),
        ((A(0), K(0)), (), r"forward\[1\].*current state is 1; Keep\(0\) needs state 0"),
        ((K(0), A(0), A(1), K(2)), (), r"forward\[3\].*has steps 0 … 1"),
        ((K(0), L(0)), (), r"forward\[1\].*Load, Drop and Backprop belong into `backward`"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_carried_out_is_refused_where_it_breaks(forward, backward, message):
    with pytest.raises(ValueError, match=message):
        Plan(2, forward, backward)


def test_an_entry_that_is_not_an_action_is_refused_by_its_place():
    with pytest.raises(TypeError, match=r"Entry 1 of the plan is 'Advance'"):
        Plan(1, (K(0), "Advance"), ())
    with pytest.raises(TypeError, match=r"Entry 0 of the plan is Keep\(index=0.5\)"):
        Plan(1, (K(0.5),), ())
    with pytest.raises(ValueError, match="`num_steps` must be an integer of at least 1, got 0"):
        Plan(0, (), ())


def test_halves_of_different_plans_are_carried_out_anew():
    nodes, graph = planners.nodes(3), planners.graph(3)

    with pytest.raises(ValueError, match=r"backward\[2\].*step 1 has no graph"):
        Plan(3, nodes.forward, graph.backward)
    with pytest.raises(ValueError, match=r"ends before step 3"):
        replace(nodes, num_steps=4)


def test_a_plan_is_carried_out_once(monkeypatch):
    plan, calls = Plan(2, *GOOD), []
    monkeypatch.setattr(plans, "refuse_impossible", lambda *given: calls.append(given))
    plan.with_costs((StepCost(1, 1, 1, 1, 1, 1),) * 2)
    restrict.restricted(restrict.without_graphs(plan), frozenset({1}))
    pickle.loads(pickle.dumps(plan))
    copy.deepcopy(plan)

    assert not calls
    assert pickle.loads(pickle.dumps(plan)) == copy.deepcopy(plan) == plan


STEPS = st.builds(
    StepCost,
    *[st.integers(0, 30)] * 7,
    st.integers(0, 9),
    st.integers(0, 9),
    st.none() | st.integers(0, 30),
    st.none() | st.integers(0, 30),
)


@st.composite
def any_plan(draw):
    """A plan of any planner, as any chain carries it out, with random costs."""
    M = draw(st.integers(1, 12))
    plan = draw(
        st.integers(1, M).map(lambda s: binomial(M, slots=s))
        | st.frozensets(st.integers(0, M - 1)).map(lambda kept: planners.keep_graphs(M, kept))
    )
    if draw(st.booleans()):
        plan = restrict.without_graphs(plan)
    if draw(st.booleans()):
        steps = draw(st.frozensets(st.integers(0, M - 1), min_size=1))
        plan = restrict.restricted(plan, steps)
    return plan.with_costs(tuple(draw(st.lists(STEPS, min_size=M, max_size=M))))


@given(any_plan())
def test_the_memory_of_a_plan_is_the_sum_worked_out_action_by_action(plan):
    held = [*weighing.moments(plan)]

    assert [*map(tuple, plan.moments())] == held
    assert plan.peak_bytes == max(bytes_ for *_, bytes_ in held)
    assert plan.nodes == max(nodes for _, nodes, *_ in held)
    runs = [a.index for a in (*plan.forward, *plan.backward) if isinstance(a, plans.RUNS)]
    passed = [a.index for a in (*plan.forward, *plan.backward) if isinstance(a, plans.Record)]
    assert plan.evaluations == len(runs)
    assert plan.seconds == sum(plan.costs[i].forward_seconds for i in runs) + sum(
        plan.costs[i].backward_seconds for i in passed
    )


def test_the_memory_of_a_plan_that_keeps_a_state_twice_or_never_is_right():
    costs = (StepCost(5, 7, 11, 2, 13, 17, 3), StepCost(4, 6, 10, 1, 12, 16, 2))
    again = Plan(2, GOOD[0], (B(1), L(0), D(0), K(0), R(0), B(0), D(0))).with_costs(costs)
    graphs = Plan(2, (R(0), R(1)), (B(1), B(0))).with_costs(costs)

    for plan in (again, graphs):
        assert [*map(tuple, plan.moments())] == [*weighing.moments(plan)]


@given(st.integers(1, 14), st.data())
def test_a_truncated_plan_gives_its_steps_a_graph_and_runs_nothing_for_the_others(M, data):
    plan = data.draw(st.integers(1, M).map(lambda s: binomial(M, slots=s)))
    steps = data.draw(st.frozensets(st.integers(0, M - 1), min_size=1))
    cut = restrict.restricted(plan, steps)

    state, kept, recorded = 0, set(), set()
    for action in (*cut.forward, *cut.backward):
        i = action.index
        if isinstance(action, plans.Keep):
            assert state == i
            kept.add(i)
        elif isinstance(action, plans.Load):
            assert i in kept
            state = i
        elif isinstance(action, plans.Drop):
            kept.remove(i)
        elif isinstance(action, plans.Backprop):
            assert (i in recorded) == (i in steps)
        else:
            assert state == i
            state = i + 1
            recorded |= {i} if isinstance(action, plans.Record) else set()
    assert not kept
    assert recorded == steps
    assert [a.index for a in cut.backward if isinstance(a, plans.Backprop)] == [*range(M)][::-1]
    # As if the chain ended behind the last of these steps, and had one slot only.
    assert cut.evaluations <= restrict.restricted(binomial(M, slots=1), steps).evaluations
    assert cut.timeline().graphs  # draws without the graphs that it does not have


def test_a_plan_prints_as_a_table():
    cost = StepCost(MiB, MiB, 10 * MiB, 2 * MiB, 11 * MiB, 12 * MiB, MiB, 0.5, 1.0)
    table = str(keep_last(10, 3).with_costs((cost,) * 10))

    assert "step evaluations  17   (plain loop: 10)" in table
    assert "graphs kept       3" in table
    assert "MiB" in table
    assert "1.23 of the plain loop" in table  # (17 x 0.5 + 10) / 15
    assert str(keep_last(10, 3)).count("\n") == 3


def test_a_plan_without_costs_says_how_to_get_some():
    with pytest.raises(ValueError, match=r"chain\.measure"):
        _ = keep_last(3, 1).peak_bytes
    with pytest.raises(ValueError, match="2 entries, but the plan has 3 steps"):
        keep_last(3, 1).with_costs((StepCost(1, 1, 1, 1, 1, 1),) * 2)
