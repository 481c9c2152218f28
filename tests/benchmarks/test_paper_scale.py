"""Readings of the paper's models: which M stand for which, which GPU is enough, pictures."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import against_M
import paper_scale
from measured import each_apart

from chainograd.samplers import time_grid


@pytest.mark.parametrize(
    ("GiB", "gpu"),
    [(0.5, "24 GB"), (24, "24 GB"), (24.1, "40 GB"), (80, "80 GB"), (81, "more than 80 GB")],
)
def test_the_smallest_gpu_that_holds_so_much(GiB, gpu):
    assert paper_scale.gpu_for(int(GiB * 2**30)) == gpu


@pytest.mark.parametrize(("name", "M"), [("MNIST32", 20), ("Anime64", 40), ("AFHQ128", 40)])
def test_few_steps_tell_the_bytes_of_many_although_shifted_ones_need_more(monkeypatch, name, M):
    def peak(name, way, M, batch, device):
        asked.append(M)
        shifted = sum(t >= 400 for t in time_grid(M)[:-1])
        return 1000 + 7 * shifted + 3 * (M - shifted)

    asked = []
    monkeypatch.setattr(paper_scale, "peak", peak)
    reading = paper_scale.at(name, "nodes", M, 8, "fake")["peak_bytes"]

    assert 5 <= min(asked) < max(asked) < M
    assert reading == peak(name, "nodes", M, 8, "fake")


def test_on_a_real_device_all_steps_are_run(monkeypatch):
    monkeypatch.setattr(paper_scale, "peak", lambda name, way, M, batch, device: M)

    assert paper_scale.at("MNIST32", "nodes", 20, 16, "cpu")["peak_bytes"] == 20


def test_readings_come_in_the_order_of_their_jobs(capfd):
    assert each_apart(pow, [(2, 3), (3, 2), (5, 1)], "fake") == [8, 9, 5]
    assert "pow: 3, 2" in capfd.readouterr().err


def test_lines_that_end_near_one_another_are_named_together():
    ends = [(10.0, "a"), (99.0, "b"), (100.0, "c"), (9.8, "d")]

    assert against_M.labels(ends) == [(100.0, "c; b"), (10.0, "a; d")]
