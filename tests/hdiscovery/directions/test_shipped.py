"""The runs that come with the package: complete, small, and what their page says."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hdiscovery.api import gallery
from hdiscovery.directions.open import open_directions
from hdiscovery.directions.publish import MEASURED
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import open_networks
from hdiscovery.directions.shipped import shipped_runs
from hdiscovery.editing.editor import edit
from hdiscovery.evaluation.rca import measure_rca

DIGITS, DIGITS_20 = (shipped_runs()[name] for name in ("digits", "digits-20"))
both = pytest.mark.parametrize("folder", [DIGITS, DIGITS_20], ids=["digits", "digits-20"])


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "docs" / "digits")
    yield importlib.import_module("results")
    sys.modules.pop("results")


@both
def test_it_is_small_and_its_files_are_of_one_training(folder):
    run = RunFolder.open(folder)
    _, step = open_networks(run)

    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4e6
    measured = {path.name for path in folder.iterdir()} & set(MEASURED)
    assert measured == set(MEASURED)
    assert all(run.read_json(name)["step"] == step for name in measured - {"labels.json"})
    assert [r["step"] for r in run.records()][-1] == step - 1


@both
def test_its_reconstructor_knows_what_was_measured_of_it(folder):
    directions = open_directions(folder)
    told = json.loads((folder / "rca.json").read_text())

    again = measure_rca(directions, pairs=64)

    # Three standard errors of 64 pairs: far above that of a network that was not trained.
    error = (told["rca"] * (1 - told["rca"]) / 64) ** 0.5
    assert abs(again.rca - told["rca"]) < 3 * error
    assert told["rca"] - 3 * error > 10 / directions.K


@pytest.mark.parametrize("kind", ["direct", "mean", "global"])
def test_a_name_edits_a_digit(kind):
    source = open_directions(Path("digits"), kind)
    k = next(k for k, name in enumerate(source.about.labels) if name)
    x_T = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    images = [
        edit(source, x_T, [k], torch.tensor([[s]]), num_steps=source.about.M) for s in (0.0, 4.0)
    ]

    assert (images[1] - images[0]).abs().max() > 0.1


def test_the_page_says_what_the_files_say(results, tmp_path):
    run = {**results.read(DIGITS), **results.read_beside()}

    results.write(DIGITS, tmp_path)

    for folder in (DIGITS, DIGITS_20):
        rca = json.loads((folder / "rca.json").read_text())
        assert f"{rca['rca']:.3f}" in (tmp_path / "digits_paper_and_here.md").read_text()
    for folder, end in ((DIGITS, ""), (DIGITS_20, "_20")):
        named = (tmp_path / f"digits_named{end}.md").read_text()
        labels = json.loads((folder / "labels.json").read_text())
        assert labels
        assert all(f"| {k} | {name} |" in named for k, name in labels.items())
    assert (tmp_path / "digits_losses.png").stat().st_size > 10_000
    fresh = run["evaluation"]["subjects"]["random"]["fresh"]["test"]["rca"]
    assert f"{fresh:.3f}" in (tmp_path / "digits_baselines.md").read_text()
    assert "| l1-only |" in (tmp_path / "digits_ablation.md").read_text()
    assert "cosine of a sample's direction" in (tmp_path / "digits_kinds.md").read_text()
    other = {**run, "records": [{**r, "L_G": 1.0} for r in run["records"]]}
    assert "1.000 (+0.307)" in results.paper_and_here(other)


def test_only_runs_whose_directions_have_names_get_a_page_in_the_demo(monkeypatch, tmp_path):
    nameless = tmp_path / "nameless"
    shutil.copytree(DIGITS, nameless, ignore=shutil.ignore_patterns("labels.json", "directions.*"))
    runs = {"digits": DIGITS, "digits-20": DIGITS_20, "nameless": nameless}
    drawn = []
    monkeypatch.setattr(gallery, "shipped_runs", lambda: runs)
    monkeypatch.setattr(gallery, "gallery", lambda name, **options: drawn.append((name, options)))

    gallery.gallery_of_shipped(tmp_path)

    assert [name for name, _ in drawn] == ["digits", "digits-20"]
    for name, options in drawn:
        names = json.loads((runs[name] / "labels.json").read_text())
        assert sorted(map(str, options["directions"])) == sorted(names)
        assert options["title"] == f"Named directions: {name}"
        assert options["out"] == tmp_path / f"{name}.html"
