"""Every field of a run is checked before anything is made."""

from dataclasses import fields

import pytest
from hdiscovery.commands.flags import read_flags
from hdiscovery.commands.train import TrainOptions
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.groups import GROUP_OF, GROUPS
from hdiscovery.directions.recipe import from_preset, presets
from hdiscovery.directions.settings import ShiftSettings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"K": 1}, "`K` must be at least 2, got 1"),
        ({"t_stop": 1000}, "`t_stop`.*1000"),
        ({"M": 1000}, "`M` can be 999 at most"),
        ({"min_shift": 5.0}, "`min_shift` 5.0 must be less than `S`, 5.0"),
        ({"min_shift": -0.1}, "`min_shift` must be at least 0"),
        ({"r_dropout": 1.0}, r"`r_dropout` .*\[0, 1\), got 1.0"),
        ({"ema": 1.0}, r"`ema` .*\[0, 1\), got 1.0"),
        ({"lambda_G": float("nan")}, "`lambda_G`"),
        ({"l1_gamma": 0.0}, "`l1_gamma` must be positive"),
        ({"learning_rate_R": 0.0}, "`learning_rate_R` must be positive"),
        ({"micro_batch": 0}, "`micro_batch` must be at least 1"),
        ({"bank": -1}, "`bank` must be at least 0"),
        ({"plan": "8 bananas"}, "`plan` must be .*'8 bananas'"),
        ({"update": "sideways"}, "`update` must be one of asymmetric, symmetric"),
        ({"adam": "sgd"}, "`adam` must be one of dense, lazy"),
        ({"frozen": "maybe"}, "`frozen` must be one of off, auto"),
        ({"K": 8.0}, r"`K` must be a whole number, got 8.0 \(field `shift.K`\)"),
        ({"r_augment": "no"}, "`r_augment` must be true or false"),
        ({"dm": 3}, "`dm` must be text"),
        ({"lamda_G": 1.0}, "`lamda_G` is not a field of a run. Did you mean `lambda_G`"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_field_out_of_range_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        DiscoveryConfig.of(**changes)


def test_an_unknown_preset_says_which_exist():
    with pytest.raises(ValueError, match="MNIST32-400-20-32-5"):
        from_preset("MNIST64")


def test_the_presets_are_table_4_of_the_paper():
    table = {
        "MNIST32-400-20-32-5": (400, 20, 32, 5.0, 128, 3000, "lenet"),
        "Anime64-400-40-128-2": (400, 40, 128, 2.0, 128, 12000, "lenet"),
        "CelebAHQ128-500-40-256-2": (500, 40, 256, 2.0, 64, 15000, "resnet18"),
        "AFHQ128-400-40-256-2": (400, 40, 256, 2.0, 64, 15000, "resnet18"),
    }
    for name, row in table.items():
        c = from_preset(name, dm="x").leaves()
        names = ("t_stop", "M", "K", "S", "batch_size", "steps", "reconstructor")
        assert tuple(c[n] for n in names) == row
        names = ("lambda_G", "lambda_1", "lambda_2", "learning_rate")
        assert tuple(c[n] for n in names) == (1.0, 0.1, 0.1, 1e-3)
        names = ("min_shift", "head_std", "r_updates", "lambda_l1")
        assert tuple(c[n] for n in names) == (0.0, 0.0, 1, 0.0)
    assert set(presets()) == {*table, "MNIST32-demo"}


def test_what_networks_depend_on_cannot_change_on_the_way():
    config = DiscoveryConfig()

    assert config.changed(steps=7, lambda_G=0.5, plan="graph").training.steps == 7
    with pytest.raises(ValueError, match="`K` of a run cannot change"):
        config.changed(K=8)
    with pytest.raises(ValueError, match="`bank` of a run cannot change"):
        config.changed(bank=8)


def test_rates_are_one_unless_they_are_given():
    config = DiscoveryConfig.of(learning_rate=0.1, learning_rate_D=0.2)

    assert config.rates == {"phi": 0.1, "heads": 0.1, "omega": 0.1, "psi": 0.2}


def test_groups_can_be_made_alone_and_are_checked_alike():
    assert DiscoveryConfig(shift=ShiftSettings(K=8)) == DiscoveryConfig.of(K=8)
    with pytest.raises(ValueError, match="`K` must be a whole number"):
        ShiftSettings(K=8.0)  # pyright: ignore
    with pytest.raises(ValueError, match="`shift` must be a ShiftSettings, got 8"):
        DiscoveryConfig(shift=8)  # pyright: ignore


def test_the_name_of_a_field_is_unique_over_the_groups():
    names = [field.name for kind in GROUPS.values() for field in fields(kind)]

    assert len(names) == len(set(names)) == len(GROUP_OF)


@pytest.mark.parametrize(
    ("words", "fits", "does_not"),
    [
        (["--micro-batch", "4"], {"plan": "nodes"}, {"plan": "graph"}),
        (["--min-shift", "6"], {"S": 8.0}, {"S": 5.0}),
    ],
)
def test_options_are_checked_with_the_recipes_own_fields_not_with_the_defaults(
    words, fits, does_not
):
    _, changes = read_flags(TrainOptions, words, command="train", shown=TrainOptions.start)

    DiscoveryConfig.of(**fits).replace(**changes)
    with pytest.raises(ValueError, match=f"`{words[0][2:].replace('-', '_')}`"):
        DiscoveryConfig.of(**does_not).replace(**changes)
