"""Plans carried out on integers: the state that enters step i is i."""

import pytest

from chainograd import plan as plans
from chainograd import planners


def run_on_paper(plan):
    state, kept, graphs, reversed_, evaluations = 0, set(), set(), [], 0
    for action in (*plan.forward, *plan.backward):
        match action:
            case plans.Keep(index):
                assert index == state
                kept.add(index)
            case plans.Load(index):
                assert index in kept
                state = index
            case plans.Drop(index):
                kept.remove(index)
            case plans.Advance(index) | plans.Record(index):
                assert index == state
                state, evaluations = index + 1, evaluations + 1
                if isinstance(action, plans.Record):
                    graphs.add(index)
            case plans.Backprop(index):
                graphs.remove(index)
                reversed_.append(index)
    assert not graphs
    assert not kept
    return reversed_, evaluations


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
