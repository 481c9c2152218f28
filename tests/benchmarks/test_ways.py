"""Every way of running a backward pass has the gradients of the plain loop and counts its cost."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import check
import pareto
import throughput
from ways import WAYS
from workloads import WORKLOADS

M = 3
CASES = [(name, way) for name in WORKLOADS for way in WAYS if way != "plain loop"]


def gradients(workload, way):
    workload.forget()
    WAYS[way].prepared(workload)()
    return torch.cat([t.grad.flatten() for t in workload.wanted])


@pytest.fixture(scope="module")
def expected():
    made = {name: make(M, 4, "cpu", "tiny") for name, make in WORKLOADS.items()}
    return made, {name: gradients(w, "plain loop") for name, w in made.items()}


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_way_gives_the_gradients_of_the_plain_loop(expected, name, way):
    workloads, plain = expected
    if not WAYS[way].fits(workloads[name]):
        pytest.skip(f"{name} has no such way")

    g = gradients(workloads[name], way)

    exact = "frozen" not in way and "sliced" not in way
    assert (
        torch.equal(g, plain[name])
        if exact
        else torch.allclose(g, plain[name], rtol=1e-3, atol=1e-4 * float(plain[name].abs().max()))
    )
    assert plain[name].abs().max() > 0


@pytest.mark.parametrize(
    ("way", "evaluations"),
    [("plain loop", M), ("checkpoint", 2 * M), ("as published", 2 * M), ("nodes", 2 * M - 1),
     ("nodes, sliced", 2 * M)],
)  # fmt: skip
def test_evaluations_are_counted_and_fakes_need_what_real_tensors_do(way, evaluations):
    job = ("dit", way, M, 4)
    real, fake = (throughput.memory(*job, device, "tiny") for device in ("cpu", "fake"))

    assert real["evaluations"] == pytest.approx(evaluations)
    assert fake["flops"] == real["flops"] > 0
    assert fake["peak_bytes"] == pytest.approx(real["peak_bytes"], rel=0.01)


@pytest.fixture(scope="module")
def content():
    job = throughput.Job("dit", 2, (M,), M)
    names = ("plain loop", "checkpoint", "nodes", "budget 1/2", "graph, frozen")
    timing = throughput.timing(job, "cpu", 1, "tiny")
    return {
        "memory": [throughput.memory("dit", n, M, 2, "cpu", "tiny") for n in names],
        "timing": [timing],
        "frontier": throughput.frontier(job, "cpu", "tiny"),
    }


def test_the_frontier_falls_and_no_reading_is_far_below_it(content):
    points = [p for p in content["frontier"] if p["layers"] == "torch's"]

    assert [p["flops"] for p in points] == sorted((p["flops"] for p in points), reverse=True)
    assert points[-1]["plan"] == f"last {M} graphs"
    for row in content["memory"]:
        assert 0.9 < pareto.of_frontier(content, row) < 1.2


def test_figures_become_a_table_and_a_picture(content, tmp_path):
    table = throughput.table(content)
    pareto.draw(content, tmp_path / "picture.png")

    assert table.count("\n") == 1 + len(content["memory"])
    assert f"| nodes | {content['memory'][2]['peak_bytes'] / 2**20:.1f} | " in table
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_guard_complains_of_more_bytes_and_of_other_counts_and_not_of_less_than_a_percent(
    content,
):
    rows = check.rows_to_check(content)[:3]

    assert check.check(rows, "tiny") == []
    assert check.complaints(rows[0], {**rows[0], "peak_bytes": rows[0]["peak_bytes"] * 1.009}) == []
    (line,) = check.complaints(rows[0], {**rows[0], "peak_bytes": rows[0]["peak_bytes"] * 1.02})
    assert "plain loop, M = 3: peak_bytes was" in line
    (line,) = check.complaints(rows[2], {**rows[2], "evaluations": 6})
    assert "evaluations was 5 and is 6" in line
