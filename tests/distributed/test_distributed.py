"""Chains under DDP and FSDP2 in two gloo processes: right, or refused."""

import json
import os
import subprocess
import sys

import pytest


def seen_by_two_processes(module, folder):
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    out = [process.communicate(timeout=300)[0] for process in processes]
    assert out[0], "rank 0 ended without an answer"
    return json.loads(out[0].splitlines()[-1])


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return seen_by_two_processes("tests.distributed.ddp_matrix", tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory):
    return seen_by_two_processes("tests.distributed.fsdp_matrix", tmp_path_factory.mktemp("fsdp"))


def test_ddp_gives_the_gradient_of_the_whole_batch(ddp):
    allowed = {name: seen for name, seen in ddp.items() if "denoiser static" not in name}

    assert len(allowed) == 18
    assert all(isinstance(seen, float) and seen < 1e-12 for seen in allowed.values()), allowed


def test_a_static_graph_inside_the_step_is_refused_with_the_way_out(ddp):
    refused = [seen for name, seen in ddp.items() if "denoiser static" in name]

    assert len(refused) == 2
    assert all("static_graph" in str(seen) and "around" in str(seen) for seen in refused)


def test_a_sharded_denoiser_frozen_or_trainable_gives_the_gradient_of_the_whole_batch(fsdp):
    cases = {
        name: seen for name, seen in fsdp.items() if name.split()[0] in ("frozen", "trainable")
    }

    assert len(cases) == 12
    assert all(seen < 1e-12 for seen in cases.values()), cases


def test_the_gradient_of_the_noise_alone_leaves_the_shards_alone(fsdp):
    error, unasked = fsdp["x_T alone"]

    assert error < 1e-12
    assert not unasked


def test_gradients_of_shards_outside_of_backward_are_an_error_and_fill_nothing(fsdp):
    refused, filled = fsdp["shards by grad"]

    assert refused
    assert not filled


def test_a_second_derivative_through_trainable_shards_is_refused(fsdp):
    assert "FSDP" in fsdp["second derivative"]
