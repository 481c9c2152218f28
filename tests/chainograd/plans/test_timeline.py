"""A plan as a picture: time to the right, steps upwards."""

from itertools import pairwise

import matplotlib
import matplotlib.pyplot

from chainograd import binomial, keep_last


def test_a_timeline_shows_every_run_in_order_and_the_states_kept_meanwhile():
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
