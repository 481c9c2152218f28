"""`import hdiscovery` offers what the commands do, and a command does what its function does."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hdiscovery
import pytest
import torch
from hdiscovery.cli import main
from hdiscovery.data.images import save_image
from hdiscovery.evaluation.settings import Sizes
from safetensors import safe_open

FIELDS = {"K": 2, "M": 2, "batch_size": 2, "steps": 2, "save_every": 1,
          "reconstructor": "difference"}  # fmt: skip


def run(*words):
    return main([str(word) for word in words])


def flags(fields):
    return [word for name, value in fields.items() for word in (f"--{name}", value)]


def held(folder):
    """Return what a folder holds, by name; of tensors what they are, not in which order."""
    return {
        str(path.relative_to(folder)): tensors(path)
        if path.suffix == ".safetensors"
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tensors(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def photo(tmp_path):
    x = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return save_image(x, tmp_path / "photo.png")


@pytest.fixture
def twice(tmp_path, tiny_run):
    """Return two copies of a run that are called the same."""
    return [shutil.copytree(tiny_run, tmp_path / side / "run") for side in ("api", "command")]


def test_the_names_are_there_and_documented():
    assert hdiscovery.__all__ == sorted(hdiscovery.__all__)
    assert set(hdiscovery.__all__) <= set(dir(hdiscovery))
    for name in hdiscovery.__all__:
        function = getattr(hdiscovery, name)
        text = inspect.getdoc(function)
        assert callable(function)
        assert all(f"{section}:" in text for section in ("Args", "Returns", "Raises", "Example"))
    with pytest.raises(AttributeError, match="no attribute 'judge'"):
        _ = hdiscovery.judge


def test_the_reference_shows_exactly_what_is_public():
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()

    assert sorted(re.findall(r"auto\w+:: hdiscovery\.(\w+)\n", page)) == hdiscovery.__all__


def test_the_import_brings_no_library():
    code = "import sys, hdiscovery; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert not {"torch", "numpy", "tyro", "PIL", "chainograd"} & set(done.stdout.split())


def test_a_name_is_a_function_whatever_was_imported_before():
    code = """
import hdiscovery.cli, hdiscovery.api.train, hdiscovery.api.evaluate, hdiscovery.api.gallery
assert all(callable(getattr(hdiscovery, name)) for name in hdiscovery.__all__)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_train_makes_the_run_that_the_command_makes(tmp_path, tiny_dm):
    fields = {**FIELDS, "dm": str(tiny_dm)}
    out = hdiscovery.train("MNIST32-demo", tmp_path / "a", device="cpu", **fields)
    assert run("train", "MNIST32-demo", "--out", tmp_path / "b", "--device", "cpu",
               *flags(fields)) == 0  # fmt: skip

    assert out == tmp_path / "a"
    a, b = (torch.load(tmp_path / x / "checkpoint.pt")["shift_block"] for x in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    configs = [json.loads((tmp_path / x / "config.json").read_text()) for x in "ab"]
    assert configs[0] == configs[1]


def test_a_training_goes_on_in_python_as_it_was_begun(tmp_path, tiny_dm):
    fields = {**FIELDS, "dm": str(tiny_dm)}
    seen = []

    def watch(records, total):
        for record in records:
            seen.append((record["step"], total))
            yield record

    out = hdiscovery.train("MNIST32-demo", tmp_path / "a", device="cpu", **{**fields, "steps": 1})
    hdiscovery.train(out=out, resume=True, device="cpu", watch=watch, steps=2)

    assert seen == [(1, 2)]
    with pytest.raises(ValueError, match="`K` of a run cannot change"):
        hdiscovery.train(out=out, resume=True, K=3)
    with pytest.raises(ValueError, match="Neither a preset nor a recipe"):
        hdiscovery.train(out=tmp_path / "b")
    with pytest.raises(ValueError, match="Nothing says where the run is"):
        hdiscovery.train(resume=True)


def test_a_recipe_is_trained_from_its_file(tmp_path, tiny_dm, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = {**FIELDS, "dm": str(tiny_dm)}
    assert run("train", "MNIST32-demo", *flags(fields), "--dry-run") == 0
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out)

    assert hdiscovery.train("mine.toml", device="cpu").resolve() == tmp_path / "runs" / "mine"
    assert run("train", "--config", "mine.toml", "--out", "b", "--device", "cpu") == 0

    a, b = (torch.load(tmp_path / x / "checkpoint.pt")["shift_block"] for x in ("runs/mine", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)

    recipe = (tmp_path / "mine.toml").read_text()
    (tmp_path / "mine.toml").write_text(recipe.replace("\nsteps = 2", "\nsteps = 3"))
    hdiscovery.train("mine.toml", resume=True, device="cpu")  # its fields count as given
    assert len((tmp_path / "runs/mine/records.jsonl").read_text().splitlines()) == 3


def test_evaluate_and_rank_write_what_the_command_writes(twice, capsys):
    mine, commands = twice
    sizes = Sizes(pairs=6, samples=2, shifts=3, references=5)
    words = ("--pairs", 6, "--samples", 2, "--shifts", 3, "--references", 5, "--device", "cpu")

    found = hdiscovery.evaluate(mine, parts=["losses", "rca"], sizes=sizes, device="cpu")
    ranking = hdiscovery.rank(mine, sizes=sizes, device="cpu")
    capsys.readouterr()
    assert run("evaluate", commands, "--only", "losses", "rca", "rank", *words) == 0

    assert held(mine) == held(commands)
    assert found.report == json.loads((mine / "evaluation.json").read_text())
    assert found.table() in capsys.readouterr().out
    assert [r.k for r in ranking.directions] == [
        r["k"] for r in json.loads((mine / "ranking.json").read_text())["directions"]
    ]


def test_edit_and_invert_write_what_the_commands_write(tiny_run, photo, tmp_path):
    directions = hdiscovery.open(tiny_run, device="cpu")
    inversion = hdiscovery.invert(directions, photo, inversion_steps=3)
    edits = hdiscovery.edit(directions, inversion, ["1:1", "2"], shifts=3)
    inversion.save(tmp_path / "a")
    edits.save(tmp_path / "a")
    words = ("--image", photo, "--inversion-steps", 3, "--out", tmp_path / "b", "--device", "cpu")

    assert run("invert", tiny_run, *words) == 0
    assert run("edit", tiny_run, *words, "--direction", "1:1", "--direction", 2, "--shifts", 3) == 0
    assert held(tmp_path / "a") == held(tmp_path / "b")
    assert edits.images.shape == (1, 1, 3, 1, 8, 8)
    # In one call, from a name and a file.
    again = hdiscovery.edit(
        tiny_run, photo, ["1:1", "2"], shifts=3, inversion_steps=3, device="cpu"
    )
    assert torch.equal(again.images, edits.images)
    with pytest.raises(FileExistsError, match="--overwrite"):
        edits.save(tmp_path / "a")


def test_gallery_writes_what_the_command_writes(twice):
    mine, commands = twice

    page = hdiscovery.gallery(mine, pairs=4, samples=1, shifts=3, directions=[1], device="cpu")
    assert run("gallery", commands, "--pairs", 4, "--samples", 1, "--shifts", 3, "--direction", 1,
               "--device", "cpu") == 0  # fmt: skip

    assert page == mine / "index.html"
    assert held(mine) == held(commands)


def test_a_run_a_published_run_and_a_file_open_the_same_way(published, tiny_run):
    for path in (tiny_run, published.path, tiny_run / "directions.safetensors", "digits"):
        directions = hdiscovery.open(path, device="cpu")

        assert directions.about.K >= 2
        assert directions.dm.image_shape[0] == 1
