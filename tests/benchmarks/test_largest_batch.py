"""The largest batch within a cap, and the table of a long chain."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import long_chain
from largest_batch import fitting, largest, seconds
from throughput import memory


@pytest.mark.parametrize(("cap", "expected"), [(9, 0), (10, 1), (105, 10), (104, 9), (10**6, 64)])
def test_the_largest_batch_is_the_last_that_fits(cap, expected):
    asked = []

    def peak(n):
        asked.append(n)
        return n * n + 4 * n - 35 if n >= 10 else 10 * n + (n - 1) // 2

    assert largest(peak, cap, 64) == expected
    assert len(asked) == len(set(asked))


def test_the_batch_that_is_found_fits_and_the_next_one_does_not():
    cap = 400_000
    batch = fitting("dit", "plain loop", 2, cap, 16, "tiny")

    assert memory("dit", "plain loop", 2, batch, "cpu", "tiny")["peak_bytes"] <= cap
    assert memory("dit", "plain loop", 2, batch + 1, "cpu", "tiny")["peak_bytes"] > cap
    assert len(seconds("dit", "plain loop", 2, batch, 2, "cpu", "tiny")) == 2


def test_nodes_on_disk_leave_memory_flat_and_binomial_ones_are_few():
    def peak(way, M):
        return long_chain.reading(way, M, "cpu", 8)["peak_bytes"]

    node = long_chain.reading("device", 20, "cpu", 8)["node_bytes"]

    assert peak("device", 60) - peak("device", 20) == pytest.approx(40 * node, rel=0.2)
    assert peak("disk", 60) - peak("disk", 20) < 4 * node
    assert peak("binomial, 10 nodes", 60) < peak("device", 20)
