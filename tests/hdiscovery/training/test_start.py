"""A run that begins with the networks of another, such as one of fewer sampling steps."""

from dataclasses import asdict

import pytest
import torch
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.publish import publish
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.directions.saved import open_run
from hdiscovery.training.loop import train
from hdiscovery.training.start import refuse_unfit
from hdiscovery.training.world import World

CONFIG = DiscoveryConfig.of(
    K=2, M=1, batch_size=2, steps=1, head_std=0.1, reconstructor="difference", r_updates=2
)


@pytest.fixture
def earlier(tmp_path):
    run = RunFolder.create(tmp_path / "earlier", asdict(CONFIG))
    list(train(run, CONFIG))
    return run


def test_a_run_begins_with_networks_and_optimizers_of_another_and_not_with_its_pairs(
    earlier, tmp_path
):
    # At so small a rate nothing moves but zeros: what it ends with is what it began with.
    config = CONFIG.replace(M=2, start_from=str(earlier.path), learning_rate=1e-30, r_updates=1)
    run = RunFolder.create(tmp_path / "later", asdict(config))

    (record,) = train(run, config)

    began, ended = open_run(earlier), open_run(run)
    assert record["step"] == 0
    for name in ("shift_block", "R", "D"):
        pairs = zip(getattr(began, name).parameters(), getattr(ended, name).parameters(),
                    strict=True)  # fmt: skip
        assert all(torch.allclose(a, b, rtol=0, atol=1e-25) for a, b in pairs), name
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    states = checkpoint["optimizers"]["psi"]["state"].values()
    assert all(state["step"] == 2 for state in states)
    assert checkpoint["buffers"] == [[]]
    assert ended.config.sampling.M == 2


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_directions_begin_as_strong_as_asked_and_the_rest_as_it_was(tmp_path, ema):
    earlier = RunFolder.create(tmp_path / "earlier", asdict(CONFIG.replace(ema=ema)))
    list(train(earlier, CONFIG.replace(ema=ema)))
    config = CONFIG.replace(
        start_from=str(earlier.path), start_scale=0.25, learning_rate=1e-30, ema=ema
    )
    run = RunFolder.create(tmp_path / "later", asdict(config))

    list(train(run, config))

    began, ended = open_run(earlier).shift_block, open_run(run).shift_block
    assert began.weight.abs().max() > 0
    torch.testing.assert_close(ended.weight, 0.25 * began.weight)
    torch.testing.assert_close(ended.conv_in.weight, began.conv_in.weight)


def test_a_run_without_an_average_begins_with_that_of_the_other(tmp_path):
    own = CONFIG.replace(ema=0.5, steps=3, learning_rate=0.1)
    earlier = RunFolder.create(tmp_path / "earlier", asdict(own))
    list(train(earlier, own))
    config = CONFIG.replace(start_from=str(earlier.path), learning_rate=1e-30)
    run = RunFolder.create(tmp_path / "later", asdict(config))

    list(train(run, config))

    raw = earlier.load_checkpoint()["shift_block"]["weight"]  # pyright: ignore
    began, ended = open_run(earlier).shift_block, open_run(run).shift_block
    assert not torch.allclose(raw, began.weight)
    torch.testing.assert_close(ended.weight, began.weight)


def test_a_run_begins_with_a_published_one_whose_discriminator_stayed(earlier, tmp_path):
    earlier.write_json("rca.json", {"rca": 0.5})
    publish(earlier, tmp_path / "published", dtype=torch.float32)
    config = CONFIG.replace(
        start_from=str(tmp_path / "published"), start_scale=0.5, learning_rate=1e-30,
        r_updates=1, ema=0.5,
    )  # fmt: skip
    run = RunFolder.create(tmp_path / "later", asdict(config))

    list(train(run, config))

    began, ended = open_run(earlier), open_run(run)
    torch.testing.assert_close(ended.shift_block.weight, 0.5 * began.shift_block.weight)
    pairs = zip(began.R.parameters(), ended.R.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-25) for a, b in pairs)
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    states = checkpoint["optimizers"]["psi"]["state"].values()
    assert all(state["step"] == 1 for state in states)


@pytest.mark.parametrize("published", [False, True])
def test_a_reconstructor_of_another_kind_begins_anew_and_the_rest_does_not(
    earlier, tmp_path, published
):
    start = earlier.path
    if published:
        earlier.write_json("rca.json", {"rca": 0.5})
        publish(earlier, start := tmp_path / "published", dtype=torch.float32)
    config = CONFIG.replace(start_from=str(start), reconstructor="deep-difference", r_updates=1,
                     learning_rate=1e-30)  # fmt: skip
    run = RunFolder.create(tmp_path / "later", asdict(config))

    list(train(run, config))

    began, ended, new = open_run(earlier), open_run(run), RunNetworks.build(config)
    torch.testing.assert_close(ended.shift_block.weight, began.shift_block.weight)
    pairs = zip(new.R.parameters(), ended.R.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-25) for a, b in pairs)
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    steps = {name: {state["step"].item() for state in each["state"].values()}
             for name, each in checkpoint["optimizers"].items()}  # fmt: skip
    assert steps["omega"] == {1}
    assert steps["phi"] == ({1} if published else {2})


def test_a_run_that_was_begun_so_goes_on_from_its_own_checkpoint(earlier, tmp_path):
    config = CONFIG.replace(start_from=str(earlier.path))
    run = RunFolder.create(tmp_path / "later", asdict(config))
    list(train(run, config))

    records = list(train(run, config.replace(steps=2)))

    assert [record["step"] for record in records] == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"K": 3}, r"`start_from` .*earlier is a run with `K` 2, and this one has 3"),
        ({"shift_form": "ddpm"}, "`shift_form` 'adm'"),
        ({"start_from": "nowhere"}, "nowhere is not a run folder"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_by_the_field(earlier, changes, message):
    config = CONFIG.replace(**{"start_from": str(earlier.path), **changes})

    with pytest.raises((ValueError, FileNotFoundError), match=message):
        refuse_unfit(config, World())


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    RunFolder.create(tmp_path / "new", asdict(CONFIG))

    with pytest.raises(ValueError, match="new has no checkpoint yet"):
        refuse_unfit(CONFIG.replace(start_from=str(tmp_path / "new")), World())
