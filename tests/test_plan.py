"""Plans carried out on integers: the state that enters step i is i."""

from itertools import pairwise

import matplotlib
import matplotlib.pyplot
import pytest

from chainograd import binomial, keep_last, planners
from chainograd import plan as plans


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


def test_a_timeline_has_every_run_one_after_the_other_and_what_is_kept_meanwhile():
    plan = binomial(10, slots=3)
    line = plan.timeline()
    runs = sorted([*line.advances, *line.records, *line.backprops], key=lambda span: span.begin)

    assert len(line.advances) + len(line.records) == plan.evaluations
    assert len(line.records) == len(line.graphs) == len(line.backprops) == 10
    assert all(a.end == b.begin for a, b in pairwise(runs))
    assert runs[-1].end == plan.evaluations + 10
    assert [span.index for span in runs if span.begin == line.turn] == [9]
    moments = [(span.begin + span.end) / 2 for span in runs]
    kept = [sum(node.begin <= t <= node.end for node in line.nodes) for t in moments]
    assert max(kept) == plan.nodes == 3


def test_a_plan_draws_itself(tmp_path):
    matplotlib.use("agg")
    ax = keep_last(6, 2).draw()

    assert ax.get_title(loc="left") == "6 steps, 10 evaluations, at most 6 nodes and 2 graphs"
    assert len(ax.patches) == 6 + 6 + 4 + 6 + 6  # nodes, graphs, advances, records, backprops
    ax.figure.savefig(tmp_path / "plan.png")
    matplotlib.pyplot.close(ax.figure)
    _, mine = matplotlib.pyplot.subplots()
    assert keep_last(6, 2).draw(mine) is mine
    matplotlib.pyplot.close(mine.figure)
