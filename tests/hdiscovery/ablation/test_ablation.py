"""Variants of a recipe, trained and measured alike."""

import json

import pytest
import torch
from hdiscovery.ablation import study
from hdiscovery.ablation.picture import best_direction
from hdiscovery.ablation.study import open_variant, table
from hdiscovery.ablation.variants import PAPER, configs, read_variants
from hdiscovery.cli import main
from hdiscovery.directions.config import DiscoveryConfig, run_config
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.files import save_dm

from tests.hdiscovery.tiny import TINY

BASE = DiscoveryConfig()
RCA = {"rca": 0.5, "rca_large_shifts": 0.75, "standard_error": 0.03}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Train and measure two variants once."""
    folder = tmp_path_factory.mktemp("ablation")
    torch.manual_seed(1)
    unet = ADMUNet(TINY)
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.05)
    save_dm(folder / "dm.safetensors", unet)
    assert ablate(folder) == 0
    return folder


def ablate(folder, *more):
    words = ("ablate", "MNIST32-demo", "--out", folder / "out", "--only", "paper", "l1-only",
             "--dm", folder / "dm.safetensors", "--K", 3, "--M", 2, "--batch-size", 4, "--steps", 2,
             "--pairs", 12, "--fresh-pairs", 12, "--fresh-steps", 2, "--samples", 2)  # fmt: skip
    return main([str(word) for word in (*words, *more)])


def test_every_variant_is_a_run_with_its_own_fields_and_the_same_measures(folder):
    runs = {name: folder / "out" / name for name in ("paper", "l1-only")}
    fields = {n: run_config(RunFolder(path)).leaves() for n, path in runs.items()}
    assert [fields[name]["lambda_G"] for name in runs] == [1.0, 0.0]
    assert [fields[name]["lambda_l1"] for name in runs] == [0.0, 1.0]
    assert {n: f for n, f in fields["paper"].items() if "lambda" not in n} == {
        n: f for n, f in fields["l1-only"].items() if "lambda" not in n
    }

    whole = json.loads((folder / "out" / "ablation.json").read_text())
    measured = [set(report["subjects"]["learnt"]) for report in whole["reports"].values()]
    assert measured == [{"rca", "fresh", "marks"}] * 2
    text = (folder / "out" / "ablation.md").read_text()
    assert text.count("\n") == 4
    assert "l1-only" in text
    assert (folder / "out" / "ablation.png").stat().st_size > 5000


def test_what_is_done_is_not_done_again(folder, monkeypatch):
    path = folder / "out" / "paper" / "records.jsonl"
    before = path.read_text()
    monkeypatch.setattr("hdiscovery.ablation.study.evaluate", None)  # would fail if it were called

    assert ablate(folder) == 0
    assert path.read_text() == before


def test_by_another_feature_net_all_is_measured_anew_and_nothing_trained(folder, monkeypatch):
    asked, measured = [], study.evaluate

    def evaluate(*args, sources, **kwargs):
        asked.append(sources.features)
        return measured(*args, sources=sources, **kwargs)

    monkeypatch.setattr("hdiscovery.ablation.study.evaluate", evaluate)
    records = (folder / "out" / "paper" / "records.jsonl").read_text()

    assert ablate(folder, "--features", "digits", "--device", "cpu") == 0
    assert asked == ["digits", "digits"]
    assert (folder / "out" / "paper" / "records.jsonl").read_text() == records


def test_a_device_that_is_not_there_is_refused(folder, capsys):
    assert ablate(folder, "--device", "cpuu") == 2
    assert "`--device cpuu` cannot be used" in capsys.readouterr().err


def test_a_variant_that_was_begun_otherwise_is_refused(folder, capsys):
    assert ablate(folder, "--head-std", 0.3) == 2
    assert "was begun with head_std = 0.1, not 0.3" in capsys.readouterr().err


def test_the_papers_variants_change_one_choice_each():
    found = configs(BASE, PAPER)

    assert found["paper"] == BASE
    assert (found["l1-only"].loss.lambda_G, found["l1-only"].loss.lambda_l1) == (0.0, 1.0)
    assert found["symmetric"].shift.update == "symmetric"


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"a/b": {}}, "name is that of its folder"),
        (
            {"a": {"lamda_G": 0.0}},
            r"Variant 'a' has the unknown field `lamda_G`. Did you mean `loss.lambda_G`",
        ),
        ({"a": {"K": 1}}, "Variant 'a': `K` must be at least 2"),
        ({"a": {}, "b": {}}, "'a' and 'b' are the same"),
    ],
)
def test_variants_that_make_no_sense_are_refused_by_name(variants, message):
    with pytest.raises(ValueError, match=message):
        configs(BASE, variants)


def test_variants_from_a_file(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("[weak-l1]\nlambda_l1 = 0.1\n[lazy]\nadam = 'lazy'\n")
    assert read_variants(path) == {"weak-l1": {"lambda_l1": 0.1}, "lazy": {"adam": "lazy"}}

    path.write_text("lambda_l1 = 0.1")
    with pytest.raises(ValueError, match="one table a variant"):
        read_variants(path)
    path.write_text("[")
    with pytest.raises(ValueError, match="is not TOML"):
        read_variants(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_variants(tmp_path / "nowhere.toml")


def test_the_table_has_a_column_for_what_any_variant_has():
    reports = {
        "a": {"subjects": {"learnt": {"rca": RCA, "fresh": {"test": {**RCA, "rca": 0.25}}}}},
        "b": {"subjects": {}, "losses": {"L_G": 0.7, "findings": [{"name": "collapse"}]}},
    }

    head, _, a, b = table(reports).splitlines()

    heads = r"RCA | RCA \|s\|>=S/10 | fresh RCA | fresh \|s\|>=S/10"
    assert head == f"| variant | {heads} | L_G | findings |"
    assert a == "| a | 0.500 ± 0.030 | 0.750 | 0.250 ± 0.030 | 0.750 | - | - |"
    assert b == "| b | - | - | - | - | 0.700 | collapse |"


def test_the_direction_that_is_shown_is_the_best_one():
    marks = [{"k": 0, "score": 0.1}, {"k": 2, "score": 0.4}, {"k": 1, "score": 0.4}]
    ranked = {"subjects": {"learnt": {"marks": {"directions": marks}, "rca": {}}}}
    known = {"subjects": {"learnt": {"rca": {"of_direction": [None, 0.2, 0.9]}}}}

    assert best_direction(ranked) == 1
    assert best_direction(known) == 2
    assert best_direction({"subjects": {}}) == 0


def test_a_variant_begun_with_the_same_fields_goes_on(tmp_path):
    assert open_variant(tmp_path, "a", BASE).path == open_variant(tmp_path, "a", BASE).path
