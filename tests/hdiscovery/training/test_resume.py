"""A run may stop at any moment, and goes on as if it had not."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict

import pytest
import torch
from hdiscovery.directions.config import run_config
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import open_run
from hdiscovery.training.bank_file import load_bank
from hdiscovery.training.loop import train

from tests.hdiscovery.tiny import assert_same


@pytest.mark.parametrize("alone", [0, 3])
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tmp_path, config, alone):
    config = config.replace(steps=4 - alone, settle_steps=alone)
    whole = RunFolder.create(tmp_path / "whole", asdict(config))
    parts = RunFolder.create(tmp_path / "parts", asdict(config))
    torch.manual_seed(0)
    list(train(whole, config))

    stopped = train(parts, config)
    next(stopped)
    next(stopped)
    stopped.close()
    torch.manual_seed(99)  # what a caller draws in between is no matter
    records = list(train(parts, config))

    assert [r["step"] for r in records] == [2, 3]
    assert [r["step"] for r in parts.records()] == [0, 1, 2, 3]
    assert_same(whole, parts)


def test_a_run_killed_at_any_moment_ends_with_the_bits_of_one_that_was_not(tmp_path, config):
    whole = RunFolder.create(tmp_path / "whole", asdict(config))
    list(train(whole, config))
    run = RunFolder.create(tmp_path / "killed", asdict(config))
    code = (
        "import sys; from pathlib import Path; "
        "from hdiscovery.directions.config import run_config; "
        "from hdiscovery.directions.run_folder import RunFolder; "
        "from hdiscovery.training.loop import train; "
        "run = RunFolder.open(Path(sys.argv[1])); list(train(run, run_config(run)))"
    )
    started = subprocess.Popen([sys.executable, "-c", code, str(run.path)])
    deadline = time.monotonic() + 60
    while len(list(run.records())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    assert started.wait() in (-signal.SIGKILL, 0)
    (run.path / "checkpoint.pt.partial").write_bytes(b"half of one")

    list(train(run, run_config(run)))

    assert [r["step"] for r in run.records()] == [0, 1, 2, 3]
    assert_same(whole, run)


def test_the_average_is_what_is_evaluated(tmp_path, config):
    run = RunFolder.create(tmp_path / "run", asdict(config))
    list(train(run, config))
    state = run.load_checkpoint()

    loaded = open_run(run).shift_block.weight

    assert torch.equal(loaded, state["average"]["module.weight"])
    assert not torch.equal(loaded, state["shift_block"]["weight"])


def test_a_run_that_changes_its_precision_draws_another_bank(tmp_path, config):
    run = RunFolder.create(tmp_path / "run", asdict(config.replace(steps=1)))
    list(train(run, config.replace(steps=1)))
    before = open_run(run)
    list(train(run, config.replace(steps=2, autocast="bf16")))

    exact, rounded = (
        load_bank(run.path / name, seed=0) for name in ("bank.safetensors", "bank-bf16.safetensors")
    )

    assert torch.equal(exact.x_T, rounded.x_T)
    assert not torch.equal(exact.x_0, rounded.x_0)
    real = before.real(exact.x_T)
    torch.testing.assert_close(exact.x_0, real, atol=1e-5, rtol=1e-5)


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    for step in (1, 2):
        run.save_checkpoint({"step": step, "x": torch.full((1000,), float(step))})
    return run


def damage(path):
    """Turn one bit of a tensor in a checkpoint."""
    with zipfile.ZipFile(path) as file:
        entry = max(file.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[entry.header_offset + 2000] ^= 1
    path.write_bytes(content)


def test_the_last_good_checkpoint_is_taken_where_the_newest_is_damaged(run):
    assert run.load_checkpoint()["step"] == 2
    damage(run.path / "checkpoint.pt")

    with pytest.warns(UserWarning, match=r"checkpoint\.pt .*damaged.*checkpoint\.previous\.pt, st"):
        state = run.load_checkpoint()

    assert state["step"] == 1
    assert state["x"].eq(1).all()


@pytest.mark.parametrize("how", ["bit", "cut", "empty"])
def test_damage_is_named_where_nothing_good_is_left(run, how):
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        path = run.path / name
        if how == "bit":
            damage(path)
        else:
            path.write_bytes(path.read_bytes()[: 500 if how == "cut" else 0])

    with pytest.raises(ValueError, match=r"checkpoint\.pt .*previous\.pt .*damaged.*Remove it"):
        run.load_checkpoint()


def test_between_two_renames_there_is_a_checkpoint(run, monkeypatch):
    replace = os.replace

    def stopped(self, target):
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(type(run.path), "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint({"step": 3})

    assert run.load_checkpoint()["step"] == 2


def test_a_checkpoint_of_another_version_is_refused_by_its_format(tmp_path, config):
    run = RunFolder.create(tmp_path / "run", asdict(config))
    run.save_checkpoint({"step": 1, "optimizer": {}})

    with pytest.raises(ValueError, match="format None, expected 'hdiscovery-checkpoint-2'"):
        open_run(run)
    with pytest.raises(ValueError, match="begin the run anew"):
        list(train(run, config))


def test_a_run_without_a_checkpoint_has_nothing_to_open(tmp_path, config):
    run = RunFolder.create(tmp_path / "run", asdict(config))

    assert run.load_checkpoint() is None
    with pytest.raises(ValueError, match="no checkpoint yet"):
        open_run(run)
