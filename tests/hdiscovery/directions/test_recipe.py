"""A recipe is a TOML file with a table for each group of settings."""

import pytest
from hdiscovery.cli import main
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.groups import GROUP_OF, from_tables
from hdiscovery.directions.recipe import as_toml, from_preset, preset, presets, read_recipe


@pytest.fixture
def recipe(tmp_path):
    def written(text):
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return written


def test_a_recipe_sets_what_it_names_and_leaves_the_rest(recipe):
    config = read_recipe(recipe("[shift]\nK = 8\nS = 2\n[loss]\nlambda_G = 0.5\n"))

    assert config == DiscoveryConfig.of(K=8, S=2.0, lambda_G=0.5)
    assert isinstance(config.shift.S, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[loss]\nlamda_G = 1.0", r"`loss\.lamda_G`. Did you mean `loss\.lambda_G`"),
        ("[loss]\nK = 8", r"`loss\.K`. Did you mean `shift\.K`"),
        ("[los]\nlambda_G = 1.0", r"unknown field `los`. Did you mean `loss`"),
        ("[shift]\nK = 8.0", r"recipe\.toml: `K` must be a whole number, got 8\.0 .*`shift\.K`"),
        ("[training]\nr_augment = 'no'", "`r_augment` must be true or false, got 'no'"),
        ("[shift]\nK = true", "`K` must be a whole number, got True"),
        ("[loss]\nlambda_1 = '0.1'", "`lambda_1` must be a number"),
        ("[shift]\nupdate = 'asymetric'", "one of .*, got 'asymetric'.*Did you mean `asymmetric`"),
        ("K = 8\n[shift]\nK = 9", r"the field `shift\.K` twice"),
        ("shift = 3", "`shift` is a table of fields, got 3"),
        ("[shift\nK = 8", "is not TOML"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_by_name_and_place(recipe, text, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe(text))


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_a_recipe_with_tables_and_unambiguous(name):
    assert from_preset(name, dm="x") == preset(name).replace(dm="x")


@pytest.mark.parametrize(
    "config", [preset("MNIST32-demo"), DiscoveryConfig.of(dm='a "b"\\c é', micro_batch=3, ema=1e-7)]
)
def test_what_is_printed_is_read_again(recipe, config):
    assert read_recipe(recipe(as_toml(config))) == config


def test_a_dry_run_prints_a_recipe_and_makes_no_folder(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = recipe("[shift]\nK = 8\n")

    assert main(["train", "--config", str(path), "--M", "5", "--dry-run"]) == 0

    assert read_recipe(recipe(capsys.readouterr().out)) == DiscoveryConfig.of(K=8, M=5)
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]


def test_the_help_shows_the_presets_own_values_and_every_choice(capsys):
    assert main(["train", "MNIST32-demo", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())

    assert "--K INT Number of directions. (default: 8)" in said.replace("│ │", "")
    assert "{lenet,resnet18,difference,deep-difference}" in said
    for name in GROUP_OF:
        assert f"--{name.replace('_', '-')}" in said


def test_a_preset_that_does_not_exist_is_refused_when_a_run_is_resumed_too(tmp_path, capsys):
    assert main(["train", "MNIST32-dmeo", "--out", str(tmp_path), "--resume"]) == 2
    assert "Did you mean `MNIST32-demo`" in capsys.readouterr().err


def test_a_flat_config_of_an_earlier_version_is_read_by_its_names():
    assert from_tables({"K": 8, "shift": {"S": 2.0}}, "config.json") == {"K": 8, "S": 2.0}
