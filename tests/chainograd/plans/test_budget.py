"""Budgets: on random costs, carried out on integers; and in bytes of real steps."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chainograd import (
    CheckpointedChain,
    StepCost,
    binomial,
    keep_last,
    meter,
    within,
)
from chainograd.plans import revolve
from chainograd.plans.budget import parse_bytes
from chainograd.plans.planners import nodes
from chainograd.plans.restrict import restricted, without_graphs
from tests.chainograd.plans import weighing
from tests.problems import Net, Wide

MiB = 2**20
M = 9
X = torch.randn(256, 32)

few, some = st.integers(0, 20), st.integers(0, 60)


@st.composite
def costs(draw):
    """Steps of unequal cost; a graph is part of what its own passes need."""
    result = []
    for _ in range(draw(st.integers(1, 8))):
        node, graph = draw(few), draw(some)
        result.append(
            StepCost(
                node,
                draw(few),
                graph,
                node + draw(few),
                graph + draw(few),
                graph + draw(few),
                draw(few),
                draw(st.integers(1, 50)),
                1.0,
            )
        )
    return tuple(result)


@settings(deadline=None, max_examples=15)
@given(costs())
def test_more_budget_never_takes_longer_and_is_never_exceeded(costs):
    M = len(costs)
    least = binomial(M, slots=1).with_costs(costs).peak_bytes
    most = keep_last(M, M).with_costs(costs).peak_bytes
    before = None
    for budget in range(max(least, 1), most + 8, 7):
        plan = within(budget, costs)
        assert plan.peak_bytes <= budget
        assert before is None or plan.seconds <= before
        before = plan.seconds


def test_fewer_slots_are_taken_where_more_would_be_slower():
    seconds = [1, 1, 20, 1, 1, 20, 20]
    costs = tuple(StepCost(10, 10, 1000, 10, 1000, 1000, forward_seconds=s) for s in seconds)
    two, three = (binomial(7, slots=s).with_costs(costs) for s in (2, 3))
    assert two.peak_bytes < three.peak_bytes
    assert two.seconds < three.seconds  # more slots run the dear steps again more often

    assert within(three.peak_bytes, costs).seconds == two.seconds


def test_a_truncated_plan_holds_the_graphs_that_it_records_and_no_others():
    plan = restricted(nodes(6), frozenset({0, 5}))
    costs = tuple(StepCost(0, 0, size, 0, size, size) for size in (100, 30, 30, 30, 30, 30))

    held = [moment.graphs for moment in plan.moments()]

    assert min(held) == held[-1] == 0
    assert max(held) == 1
    assert plan.with_costs(costs).peak_bytes == 100  # not less for graphs that never were


def test_a_plan_whose_graphs_take_nothing_prints():
    net = torch.nn.Linear(3, 3)
    chain = CheckpointedChain(lambda x, i: net(x), 1, plan="1 MiB", micro_batch=1)
    chain(torch.ones(2, 3)).sum().backward()

    assert "MiB" in str(chain.plan)


@pytest.mark.parametrize("budget", ["3 MiB", "5 MiB", "40 MiB"])
@pytest.mark.parametrize(
    "grad_steps",
    [3, 9, {2, 5, 6, 11}, lambda n: range(n - 4, n)],
    ids=["last 3", "last 9", "a set", "a function"],
)
def test_a_budget_counts_only_what_a_truncated_gradient_needs(grad_steps, budget):
    M, net, x = 12, Wide(), torch.randn(256, 32)
    chain = CheckpointedChain(net, M, plan=budget, grad_steps=grad_steps)
    chain(x).sum().backward()
    with meter() as reading:
        chain(x).sum().backward()

    predicted = chain.plan.peak_bytes
    assert predicted <= reading.peak_bytes + max(0.03 * predicted, 0.2 * 2**20)
    assert reading.peak_bytes <= predicted + max(0.03 * predicted, 0.2 * 2**20)
    if budget == "40 MiB":  # there is room for every graph that the gradient passes
        assert chain.plan.evaluations == M


def alike(plan):
    return plan


@settings(deadline=None, max_examples=60)
@given(costs(), st.data())
def test_the_plan_found_is_as_fast_as_the_fastest_of_all_plans(costs, data):
    M = len(costs)
    steps = data.draw(st.frozensets(st.integers(0, M - 1), min_size=1))
    as_run = data.draw(
        st.sampled_from(
            [
                alike,
                without_graphs,
                lambda plan: restricted(plan, steps),
                lambda plan: restricted(without_graphs(plan), steps),
            ]
        )
    )
    ends = [weighing.peak(as_run(p).with_costs(costs)) for p in (keep_last(M, M), nodes(M))]
    limit = data.draw(st.integers(1, max(ends) + 5))

    expected = weighing.fastest(limit, costs, as_run)
    if expected is None:
        with pytest.raises(ValueError, match="at the least"):
            within(limit, costs, as_run=as_run)
        return
    found = within(limit, costs, as_run=as_run)
    assert found.seconds <= expected.seconds
    assert found.peak_bytes == weighing.peak(found) <= limit


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("slots", [40, 3])
def test_a_long_chain_is_planned_without_building_the_longest_plans(monkeypatch, slots, unequal):
    M, made = 2000, []
    segment = revolve._segment
    monkeypatch.setattr(
        revolve, "_segment", lambda *a: made.append(len(segment(*a))) or segment(*a)
    )
    costs = tuple(
        StepCost(100, 100, 5000, 150, 6000, 6000, forward_seconds=1 + unequal * (i % 7))
        for i in range(M)
    )
    roomy = within(10**9, costs)
    nodes_fit = within(nodes(M).with_costs(costs).peak_bytes + 10**6, costs)

    assert not made  # where all nodes fit, no binomial plan is looked at
    assert roomy.evaluations == M
    assert nodes_fit.nodes == M < nodes_fit.evaluations < 2 * M
    budget = binomial(M, slots=slots).with_costs(costs).peak_bytes
    made.clear()
    plan = within(budget, costs)
    assert plan.peak_bytes <= budget
    assert plan.nodes <= slots
    assert max(made) < 100_000  # the plan with a single slot has two million actions


def test_a_chain_without_steps_is_refused():
    with pytest.raises(ValueError, match="`costs` is empty"):
        within("1MiB", ())


def test_of_the_plans_with_few_states_that_fit_the_fastest_is_taken():
    costs = (StepCost(1000, 1000, 10, 10, 10, 20),) * 20
    limit = binomial(20, slots=4).with_costs(costs).peak_bytes

    found = within(limit, costs)

    assert found.evaluations == binomial(20, slots=4).evaluations
    assert found.evaluations < binomial(20, slots=2).evaluations


def peak_of_the_chain(chain, x):
    """Return the measured peak of a chain's forward and backward pass, gradients discarded."""
    with meter() as reading:
        y = chain(x)
        torch.autograd.grad(y, list(chain.step.parameters()), torch.ones_like(y))
    return reading.peak_bytes


def test_a_budget_is_kept_and_more_of_it_never_takes_longer():
    step = Wide()
    chain = CheckpointedChain(step, M)
    costs = tuple(
        replace(cost, forward_seconds=1.0 + (i % 3 == 0), backward_seconds=1.0)
        for i, cost in enumerate(chain.measure(X))
    )
    least = binomial(M, slots=1).with_costs(costs).peak_bytes
    most = keep_last(M, M).with_costs(costs).peak_bytes
    seconds = []
    for budget in range(least, most + MiB, MiB // 2):
        plan = within(budget, costs)
        assert plan.peak_bytes <= budget
        measured = peak_of_the_chain(CheckpointedChain(step, M, plan=plan), X)
        assert measured <= budget + max(0.03 * budget, MiB)
        seconds.append(plan.seconds)

    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > seconds[-1]
    assert within(most, costs).evaluations == M


def test_a_budget_that_cannot_be_met_says_the_least_that_can():
    x = X.clone().requires_grad_()

    with pytest.raises(ValueError, match=r"10000.*needs [\d,]+ at the least.*frozen"):
        CheckpointedChain(Wide(), M, plan=10_000)(x)


@pytest.mark.parametrize(
    ("text", "number"),
    [("8GiB", 8 * 2**30), ("500 MB", 500 * 10**6), ("1.5kb", 1500), (7, 7), ("10B", 10)],
)
def test_bytes_can_be_written_with_units(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize("bad", ["8 apples", "GiB", "", 0, -1, True, 2.5, "0 MB"])
def test_other_bytes_are_refused_with_examples(bad):
    with pytest.raises(ValueError, match="'8GiB'"):
        CheckpointedChain(lambda x, i: x, 3, plan=bad)


def test_a_budget_keeps_graphs_of_the_steps_that_the_gradient_may_pass():
    net, x = Net(4, torch.float32), torch.randn(20, 4)

    def kept(**changes):
        chain = CheckpointedChain(net, M, plan="1 GiB", **changes)
        chain(x)
        with meter() as reading:
            y = chain(x)
        return reading.live_bytes - y.nbytes

    assert 0 < kept(grad_steps=2) < kept() / 2
