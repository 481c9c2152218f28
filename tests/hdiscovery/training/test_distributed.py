"""Two processes train as one does, and one that dies is started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.training.draws import seeded
from hdiscovery.training.world import World

from tests.hdiscovery.tiny import weights

ROOT = Path(__file__).parents[3]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def seen():
    """Return what two processes saw."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.hdiscovery.training.together"],
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert started[0].returncode == 0, said[0][1]
    return json.loads(said[0][0].splitlines()[-1])


@pytest.mark.parametrize("way", ["plain", "micro-batches", "again"])
def test_half_the_batch_in_each_of_two_processes_gives_the_gradients_of_the_whole(seen, way):
    assert seen[way]["difference"] < 1e-11


def test_each_phase_has_one_reduction_a_step(seen):
    assert seen["plain"]["reductions"] == [2, 2]  # of two steps


def test_a_model_in_shards_gives_the_same_gradients_in_half_the_room(seen):
    assert seen["shards"]["difference"] < 1e-11
    assert seen["shards"]["part"] < 0.6


def test_every_rank_and_step_draws_noise_of_its_own():
    drawn = set()
    for step in range(3):
        for rank in range(3):
            with seeded(0, step, rank):
                drawn.add(torch.randn(1).item())

    assert len(drawn) == 9


def test_a_batch_that_cannot_be_shared_out_is_refused_with_one_that_can():
    assert World(0, 4).share(64) == 16
    with pytest.raises(ValueError, match=r"`batch_size` 6 .* multiple of their number, 4: try 8"):
        World(0, 4).share(6)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_whose_worker_is_killed_ends_as_one_that_was_not(tmp_path, config):
    words = ["--K", "3", "--M", "2", "--batch-size", "4", "--steps", "5", "--save-every", "1",
             "--reconstructor", "difference", "--dm", config.model.dm, "--ema", "0.9"]  # fmt: skip
    for name, kill in (("whole", False), ("killed", True)):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc-per-node", "2", "--max-restarts", "3",
                   "-m", "hdiscovery", "train", "MNIST32-400-20-32-5",
                   "--out", str(tmp_path / name), "--device", "cpu", *words]  # fmt: skip
        process = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
        )
        if kill:
            kill_worker(process, RunFolder(tmp_path / name), after=2)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said

    whole, killed = (RunFolder.open(tmp_path / name) for name in ("whole", "killed"))
    assert [r["step"] for r in killed.records()] == list(range(5))
    a, b = weights(whole), weights(killed)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[place], b[place]) for place in a)


def kill_worker(launcher, run, after):
    """Kill one of a launcher's processes as soon as so many steps are recorded."""
    deadline = time.monotonic() + 120
    while len(list(run.records())) < after and launcher.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    if not children.exists():
        pytest.skip("needs /proc to find the launcher's processes")
    found = children.read_text().split()
    assert found
    os.kill(int(found[-1]), signal.SIGKILL)
