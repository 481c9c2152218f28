"""train and demo, as a user of the command line sees them."""

from pathlib import Path

import pytest
from hdiscovery.cli import main
from hdiscovery.directions.config import run_config
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.files import save_dm
from hdiscovery.dm.open import load_dm

TINY = ("--K", "2", "--M", "2", "--batch-size", "2", "--steps", "2", "--save-every", "1",
        "--reconstructor", "difference", "--device", "cpu")  # fmt: skip


def test_a_published_run_is_not_trained_on(published, capsys):
    words = ["train", "MNIST32-demo", "--out", str(published.path), "--resume", "--steps", "3"]

    assert main(words) == 2
    assert "--start-from" in capsys.readouterr().err
    assert sum(1 for _ in published.records()) == 1


def test_only_its_own_launcher_goes_on_with_a_run_that_it_began(tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "run")
    assert main(["train", "MNIST32-demo", "--out", out, *TINY]) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")

    again = ["train", "MNIST32-demo", "--out", out, *TINY, "--learning-rate", "0.25"]
    monkeypatch.setattr("hdiscovery.training.start.launcher", lambda: "another 1")
    assert main(again) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert run_config(RunFolder.open(Path(out))).optimizer.learning_rate != 0.25
    monkeypatch.undo()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(again) == 0


def test_a_switch_can_be_turned_off_and_a_refused_change_is_not_kept(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "MNIST32-demo", "--out", str(out), *TINY, "--r-updates", "2", "--r-augment"]
    assert main(words) == 0
    resume = ["train", "MNIST32-demo", "--out", str(out), "--device", "cpu", "--resume"]

    assert main([*resume, "--no-r-augment"]) == 0
    assert not run_config(RunFolder.open(out)).training.r_augment
    assert main([*resume, "--shard-dm"]) == 2
    assert "--no-shard-dm" in capsys.readouterr().err
    assert not run_config(RunFolder.open(out)).model.shard_dm


@pytest.mark.parametrize("extra", [["--dm", "nowhere.safetensors"], ["--shard-dm"]])
def test_a_run_that_cannot_begin_leaves_no_folder(extra, tmp_path, capsys):
    out = tmp_path / "run"

    assert main(["train", "MNIST32-demo", "--out", str(out), *TINY, *extra]) == 2
    assert not out.exists()


def test_a_model_of_fewer_times_than_t_stop_is_refused(tmp_path, capsys):
    path = tmp_path / "short.safetensors"
    save_dm(path, load_dm("MNIST32-small").unet, T=100)

    words = ["train", "MNIST32-demo", "--out", str(tmp_path / "run"), *TINY, "--dm", str(path)]
    assert main(words) == 2
    assert "`t_stop` 400 leaves no step to be shifted" in capsys.readouterr().err
    assert main([*words, "--t-stop", "40"]) == 0


def test_a_folder_that_cannot_be_made_is_an_error_in_words(capsys):
    assert main(["train", "MNIST32-demo", "--out", "/dev/null/x", *TINY]) == 2
    assert "/dev/null" in capsys.readouterr().err


def test_a_seed_out_of_range_is_named(capsys):
    assert main(["train", "MNIST32-demo", "--seed", "3000000000"]) == 2
    assert "`seed`" in capsys.readouterr().err
