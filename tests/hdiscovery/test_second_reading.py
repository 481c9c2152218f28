"""What a second reading found: nothing of a user's is written over, wrong folders are refused."""

import json
import os
import stat
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hdiscovery.cli import main
from hdiscovery.directions.config import DiscoveryConfig, run_config
from hdiscovery.directions.publish import publish
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.shipped import own_run, shipped_runs
from hdiscovery.dm.files import save_dm
from hdiscovery.dm.open import load_dm
from hdiscovery.dm.tensors import save_tensors
from hdiscovery.train.loop import train
from hdiscovery.train.recent_pairs import RecentPairs

TINY = ("--K", "2", "--M", "2", "--batch-size", "2", "--steps", "2", "--save-every", "1",
        "--reconstructor", "difference", "--device", "cpu")  # fmt: skip


@pytest.fixture
def small(tmp_path):
    """Return a run of one step."""
    config = DiscoveryConfig.of(K=2, M=2, batch_size=2, steps=1, save_every=1,
                             reconstructor="difference")  # fmt: skip
    run = RunFolder.create(tmp_path / "small", asdict(config))
    list(train(run, config))
    return run


@pytest.fixture
def published(small, tmp_path):
    small.write_json("rca.json", {"rca": 0.5, "pairs": 8, "shift_error": 1.0,
                                  "of_direction": [0.5] * 2, "step": 1})  # fmt: skip
    return publish(small, tmp_path / "published")


def test_files_of_tensors_are_as_readable_as_any_other_file(tmp_path):
    before = os.umask(0o022)
    try:
        path = save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_an_image_is_not_replaced_by_its_inversion(tmp_path, capsys, monkeypatch):
    from torchvision.utils import save_image

    photo = tmp_path / "digit.png"
    save_image(torch.zeros(1, 32, 32), photo)
    before = photo.read_bytes()
    words = ["invert", "MNIST32-small", "--image", str(photo), "--out", str(tmp_path)]

    assert main([*words, "--steps", "2", "--overwrite"]) == 2
    assert "would put a result in place of the image" in capsys.readouterr().err
    assert photo.read_bytes() == before


def test_a_page_of_somebody_else_is_not_replaced(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits.html").write_text("mine")

    assert main(["gallery", "digits", "--pairs", "2"]) == 2
    assert "is no gallery" in capsys.readouterr().err
    assert Path("digits.html").read_text() == "mine"


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
    monkeypatch.setattr("hdiscovery.train.start.launcher", lambda: "another 1")
    assert main(again) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert run_config(RunFolder.open(Path(out))).optimizer.learning_rate != 0.25
    monkeypatch.undo()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(again) == 0


def test_a_checkpoint_is_not_written_of_weights_that_are_not_finite(small):
    config = run_config(small).replace(steps=4)
    running = train(small, config)
    before = (small.path / "checkpoint.pt").read_bytes()

    def ruined(self, pair, omega):
        next(self.R.parameters()).data.fill_(float("inf"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecentPairs, "train_again", ruined)
        with pytest.raises(FloatingPointError, match="is not finite at step 1"):
            list(running)
    assert (small.path / "checkpoint.pt").read_bytes() == before


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


def test_what_was_measured_of_another_checkpoint_is_not_published(small, tmp_path):
    small.write_json("rca.json", {"rca": 0.5, "pairs": 8, "step": 7, "of_direction": [0.5] * 2})

    with pytest.raises(ValueError, match=r"rca.json was measured after step 7, .* at step 1"):
        publish(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_page_takes_the_accuracy_that_was_measured_on_more_pairs(small, capsys):
    words = ["gallery", str(small.path), "--samples", "1", "--columns", "3", "--device", "cpu"]
    assert main(["evaluate", str(small.path), "--only", "rca", "--pairs", "6"]) == 0
    assert main([*words, "--pairs", "4"]) == 0
    assert small.read_json("rca.json")["pairs"] == 6
    assert main([*words, "--pairs", "8"]) == 0
    assert small.read_json("rca.json")["pairs"] == 8


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


def test_published_runs_are_ranked_and_shipped_ones_are_left_alone(published, capsys):
    assert main(["rank", str(published.path), "--samples", "2", "--shifts", "3",
                 "--references", "5", "--device", "cpu"]) == 0  # fmt: skip
    for command in ("rank", "evaluate", "directions"):
        assert main([command, "digits", "--device", "cpu"]) == 2
        assert "comes with the package" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="copy"):
        own_run(Path("digits"))
    assert main(["label", "digits"]) == 0
    assert shipped_runs()["digits"].is_dir()


def test_a_label_that_is_taken_away_stays_away(tmp_path, capsys):
    import shutil

    from hdiscovery.directions.open import open_directions

    run = tmp_path / "digits"
    shutil.copytree(shipped_runs()["digits"], run)
    named = next(k for k, label in enumerate(open_directions(run).about.labels) if label)

    assert main(["label", str(run), f"{named}="]) == 0
    assert open_directions(run).about.labels[named] == ""


def test_pages_that_cannot_be_written_are_an_error_of_one_line(capsys):
    assert main(["train", "MNIST32-demo", "--out", "/dev/null/x", *TINY]) == 2
    assert "/dev/null" in capsys.readouterr().err


def test_sizes_that_would_end_in_a_traceback_are_named(small, capsys):
    assert main(["rank", str(small.path), "--batch-size", "0"]) == 2
    assert "`--batch-size`" in capsys.readouterr().err
    assert main(["train", "MNIST32-demo", "--seed", "3000000000"]) == 2
    assert "`seed`" in capsys.readouterr().err


def test_a_pretraining_goes_on_as_it_was_begun(tmp_path):
    from hdiscovery.train.pretrain import PretrainConfig, begun

    config = PretrainConfig(out=tmp_path / "dm", steps=500, batch_size=16, learning_rate=3e-4)
    content = json.loads(json.dumps(asdict(config), default=str))
    RunFolder.create(tmp_path / "dm", content)

    assert begun(tmp_path / "dm") == config
