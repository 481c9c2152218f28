"""Chains under DistributedDataParallel, with two gloo processes: right, or refused."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ddp_matrix", str(folder)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    out = [process.communicate(timeout=300)[0] for process in processes]
    assert out[0], "rank 0 ended without an answer"
    return json.loads(out[0].splitlines()[-1])


def test_ddp_gives_the_gradient_of_the_whole_batch(matrix):
    allowed = {name: seen for name, seen in matrix.items() if "denoiser static" not in name}

    assert len(allowed) == 18
    assert all(isinstance(seen, float) and seen < 1e-12 for seen in allowed.values()), allowed


def test_a_static_graph_inside_the_step_is_refused_with_the_way_out(matrix):
    refused = [seen for name, seen in matrix.items() if "denoiser static" in name]

    assert len(refused) == 2
    assert all("static_graph" in str(seen) and "around" in str(seen) for seen in refused)
