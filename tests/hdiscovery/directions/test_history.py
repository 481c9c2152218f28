"""A run stores what happened to it, and with which diffusion model."""

import json
import logging
import shutil
from dataclasses import asdict

import pytest
import torch
from hdiscovery.cli import main
from hdiscovery.directions.config import DiscoveryConfig, run_config
from hdiscovery.directions.fingerprint import dm_hash
from hdiscovery.directions.history import known_model
from hdiscovery.directions.publish import publish
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import open_networks, open_run
from hdiscovery.directions.shipped import shipped_runs
from hdiscovery.dm.files import save_dm
from hdiscovery.dm.open import load_dm
from hdiscovery.training.loop import train


@pytest.fixture
def dm(tmp_path, tiny_dm):
    return shutil.copy(tiny_dm, tmp_path / "dm.safetensors")


@pytest.fixture
def run(tmp_path, dm):
    config = DiscoveryConfig.of(dm=str(dm), K=2, M=2, batch_size=2, steps=1,
                                reconstructor="difference")  # fmt: skip
    run = RunFolder.create(tmp_path / "run", asdict(config))
    list(train(run, config))
    return run


def replaced(dm):
    """Put another model of the same shape in the model's place."""
    unet = load_dm(dm).unet
    with torch.no_grad():
        next(iter(unet.parameters())).add_(1.0)
    save_dm(dm, unet)


def test_a_start_and_every_change_are_appended_and_nothing_is_written_over(run):
    config = run_config(run)
    begun = (run.path / "history.jsonl").read_text()
    (first,) = run.history()
    assert (first["event"], first["step"], first["processes"]) == ("begun", 0, 1)
    assert first["config"] == asdict(config)
    assert set(first["versions"]) == {"chainograd", "torch", "python"}
    assert first["when"].endswith("+00:00")

    list(train(run, config.replace(steps=2, learning_rate=0.5)))
    list(train(run, config.replace(steps=2, learning_rate=0.5)))

    assert (run.path / "history.jsonl").read_text().startswith(begun)
    _, second, third = run.history()
    assert (second["event"], second["step"]) == ("resumed", 1)
    assert second["changed"] == {"optimizer.learning_rate": [1e-3, 0.5], "training.steps": [1, 2]}
    assert (third["step"], "changed" in third) == (2, False)
    assert run_config(run).optimizer.learning_rate == 0.5


def test_a_line_that_a_kill_cut_short_is_passed_over_and_the_next_is_whole(run):
    path = run.path / "history.jsonl"
    path.write_text(path.read_text() + '{"event": "resu')

    run.append_history({"event": "resumed"})

    assert [entry["event"] for entry in run.history()] == ["begun", "resumed"]


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_another_model_of_the_same_shape_is_refused(run, dm, command, capsys):
    config_before = (run.path / "config.json").read_bytes()
    replaced(dm)

    words = {
        "evaluate": ["evaluate", str(run.path), "--only", "rca", "--pairs", "4"],
        "train": ["train", "MNIST32-demo", "--out", str(run.path), "--resume", "--steps", "2"],
    }
    assert main([*words[command], "--device", "cpu"]) == 2

    said = " ".join(capsys.readouterr().err.split())
    assert "is not the one that" in said
    assert "Put the run's model back" in said
    assert (run.path / "config.json").read_bytes() == config_before
    assert len(run.history()) == 1


def test_a_model_by_a_relative_path_is_found_from_another_folder(tmp_path, tiny_dm, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_dm, "dm.safetensors")
    config = DiscoveryConfig.of(dm="dm.safetensors", K=2, M=2, batch_size=2, steps=1,
                                reconstructor="difference")  # fmt: skip
    run = RunFolder.create(tmp_path / "run", asdict(config))
    list(train(run, config))

    monkeypatch.chdir(tmp_path / "elsewhere")

    assert known_model(run).path == str(tmp_path / "dm.safetensors")
    assert dm_hash(open_run(run).dm) == known_model(run).sha256


def test_a_model_that_was_moved_is_named_in_the_config(run, dm, tmp_path):
    (tmp_path / "models").mkdir()
    moved = shutil.move(dm, tmp_path / "models" / "dm.safetensors")
    with pytest.raises(FileNotFoundError):
        open_run(run)

    run.write_json("config.json", asdict(run_config(run).replace(dm=str(moved))))

    assert open_run(run).config.model.dm == str(moved)


def test_a_published_run_knows_its_model_and_not_this_machines_path(run, dm, tmp_path):
    run.write_json("rca.json", {"rca": 0.5, "pairs": 8, "step": 1, "of_direction": [0.5] * 2})
    published = publish(run, tmp_path / "published")

    assert known_model(published).sha256 == known_model(run).sha256
    assert known_model(published).path == ""
    replaced(dm)
    with pytest.raises(ValueError, match="is not the one that"):
        open_networks(published)


def test_a_run_of_an_earlier_version_opens_with_a_note_and_stores_the_hash_when_resumed(
    run, caplog
):
    (run.path / "history.jsonl").unlink()
    flat = run_config(run).leaves()
    (run.path / "config.json").write_text(json.dumps(flat))

    with caplog.at_level(logging.WARNING):
        opened = open_run(run)
    assert "stores no hash of its diffusion model" in caplog.text

    list(train(run, opened.config.replace(steps=2)))

    (entry,) = run.history()
    assert (entry["event"], entry["step"]) == ("resumed", 1)
    assert known_model(run).sha256 == dm_hash(opened.dm)


@pytest.mark.parametrize("name", sorted(shipped_runs()))
def test_a_shipped_run_knows_its_model(name):
    known = known_model(RunFolder.open(shipped_runs()[name]))

    assert known.sha256 == dm_hash(load_dm(known.dm))
