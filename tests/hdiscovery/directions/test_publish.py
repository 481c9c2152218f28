"""A run without what only its training needs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hdiscovery.api.gallery import gallery_of_shipped
from hdiscovery.cli import main
from hdiscovery.directions import shipped
from hdiscovery.directions.open import open_directions
from hdiscovery.directions.portable import FILE as DIRECTIONS
from hdiscovery.directions.publish import publish
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import (
    RECONSTRUCTOR,
    SHIFT_BLOCK,
    is_published,
    open_networks,
    trained_steps,
)
from hdiscovery.directions.shipped import located, shipped_runs
from hdiscovery.editing.editor import edit
from hdiscovery.evaluation.rca import measure_rca


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run, its accuracy measured."""
    run = RunFolder.open(shutil.copytree(tiny_run, tmp_path / "run"))
    K = run.read_json("config.json")["shift"]["K"]
    run.write_json("rca.json", {"rca": 0.5, "shift_error": 1.0, "of_direction": [0.5] * K})
    return run


def test_it_gives_the_run_s_images_to_the_precision_of_the_file(run, tmp_path):
    publish(run, tmp_path / "exact", dtype=torch.float32)
    publish(run, tmp_path / "half")
    x_T, s = torch.randn(2, 1, 8, 8), torch.tensor([[1.0], [-2.0]])

    own, exact, half = (
        edit(open_directions(tmp_path / name), x_T, [1], s, num_steps=3)
        for name in ("run", "exact", "half")
    )

    assert torch.equal(exact, own)
    assert not torch.equal(half, own)
    torch.testing.assert_close(half, own, atol=1e-2, rtol=0)


def test_it_knows_its_steps_and_what_was_measured_and_has_no_checkpoint(run, tmp_path):
    run.write_json("labels.json", {"1": "thicker"})
    trained = list(run.records())
    run.append_record({**trained[-1], "step": trained_steps(run)})  # stopped before its checkpoint
    out = publish(run, tmp_path / "out")
    networks, step = open_networks(out)

    assert is_published(out)
    assert not is_published(run)
    assert step == trained_steps(run) > 0
    assert out.read_json("rca.json") == run.read_json("rca.json")
    assert open_directions(out.path).about.labels[1] == "thicker"
    assert not list(out.path.glob("*.pt"))
    short, whole = list(out.records()), trained
    assert [r["step"] for r in short] == [r["step"] for r in whole]
    assert short[-1]["L_G"] == pytest.approx(whole[-1]["L_G"], rel=1e-4)
    assert "seconds" not in short[-1]
    with pytest.raises(ValueError, match="stayed with the run"):
        networks.D(torch.zeros(1, 1, 8, 8))


def test_its_accuracy_can_be_measured_again(run, tmp_path):
    own = measure_rca(open_directions(run.path), pairs=32)
    out = publish(run, tmp_path / "out", dtype=torch.float32).path

    assert main(["evaluate", str(out), "--only", "rca", "--pairs", "32"]) == 0

    again = RunFolder.open(out).read_json("rca.json")
    assert again["of_direction"] == own.of_direction
    assert again["shift_error"] == pytest.approx(own.shift_error)


def test_means_are_measured_from_what_is_written(run, tmp_path):
    out = publish(run, tmp_path / "out").path

    assert main(["directions", str(out), "--no-calibration", "--samples", "2"]) == 0

    assert open_directions(out, "mean").kind == "mean"
    about = open_directions(out / DIRECTIONS).about
    assert about.shift_block_hash == open_directions(out).about.shift_block_hash
    assert about.shift_block_hash != open_directions(run.path).about.shift_block_hash


def test_a_shipped_run_is_found_by_its_name_unless_something_is_there(
    run, tmp_path, monkeypatch, capsys
):
    package = tmp_path / "package"
    publish(run, package / "digits")
    monkeypatch.setattr(shipped, "SHIPPED", package)
    monkeypatch.chdir(tmp_path)

    assert shipped_runs() == {"digits": package / "digits"}
    assert open_directions(Path("digits")).kind == "direct"
    assert main(["gallery", "digits", "--samples", "1", "--shifts", "3"]) == 0
    assert (tmp_path / "digits.html").is_file()
    assert not (package / "digits" / "index.html").exists()
    (tmp_path / "digits").mkdir()
    assert located(tmp_path / "digits") == tmp_path / "digits"


def test_the_demo_shows_what_a_shipped_run_has_names_for(run, tmp_path, monkeypatch):
    run.write_json("labels.json", {"1": "thicker"})
    publish(run, tmp_path / "package" / "digits")
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "package")

    (page,) = gallery_of_shipped(tmp_path)

    assert page == tmp_path / "digits.html"
    text = page.read_text()
    assert "Direction 1" in text
    assert "thicker" in text
    assert "Direction 0" not in text


def test_what_was_not_measured_is_not_published(tiny_run, tmp_path):
    run = RunFolder.open(shutil.copytree(tiny_run, tmp_path / "run"))
    (run.path / "rca.json").unlink(missing_ok=True)

    with pytest.raises(ValueError, match="evaluate RUN --only rca"):
        publish(run, tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "another format"])
@pytest.mark.parametrize("name", [SHIFT_BLOCK, RECONSTRUCTOR])
def test_a_damaged_file_is_named(run, tmp_path, name, damage):
    out = publish(run, tmp_path / "out")
    file, what = out.path / name, Path(name).stem.replace("_", "-")
    whole = file.read_bytes()
    other = whole.replace(f"{what}-1".encode(), f"{what}-0".encode())
    file.write_bytes(whole[:200] if damage == "cut" else other)

    with pytest.raises(ValueError, match=f"{name} is not a published {what.replace('-', ' ')}"):
        open_networks(out)


def test_the_command_says_how_large_it_is(run, tmp_path, capsys):
    assert main(["publish", str(run.path), "--out", str(tmp_path / "out")]) == 0
    assert "MB" in capsys.readouterr().out
    assert main(["publish", str(run.path), "--out", str(tmp_path / "out")]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["shift"]["K"] == 3


def test_what_was_measured_of_another_checkpoint_is_not_published(small, tmp_path):
    small.write_json("rca.json", {"rca": 0.5, "pairs": 8, "step": 7, "of_direction": [0.5] * 2})

    with pytest.raises(ValueError, match=r"rca.json was measured after step 7, .* at step 1"):
        publish(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()
