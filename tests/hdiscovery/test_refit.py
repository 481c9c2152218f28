"""A new reconstructor for a run, fitted to the pairs in its buffer."""

from dataclasses import asdict

import pytest
import torch
from hdiscovery import refit as module
from hdiscovery.directions.config import run_config
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import open_run
from hdiscovery.refit import refit
from hdiscovery.rescale import rescaled
from hdiscovery.training.loop import train

from tests.hdiscovery.tiny import weights


@pytest.fixture
def run(config, tmp_path):
    run = RunFolder.create(tmp_path / "run", asdict(config))
    list(train(run, config))
    return run


def test_r_and_its_optimizer_are_new_and_all_else_is_what_it_was(run):
    before = weights(run)

    found = refit(run, passes=2, batch_size=4)

    after = weights(run)
    changed = {place.split("/")[1] for place in after if not torch.equal(
        after[place], before.get(place, torch.tensor(torch.nan)))}  # fmt: skip
    gone = {place for place in before if place not in after}
    assert changed == {"R"}
    assert gone
    assert all(place.startswith("/optimizers/omega/state") for place in gone)
    state = found.R.state_dict()
    assert all(torch.equal(after[f"/R/{name}"], tensor) for name, tensor in state.items())


def test_the_run_goes_on_from_it(run, config):
    refit(run, passes=2, batch_size=4)

    records = list(train(run, config.replace(steps=6)))

    assert [r["step"] for r in records] == [4, 5]
    omega = {place: v for place, v in weights(run).items() if "/omega/state" in place}
    counts = {float(v) for place, v in omega.items() if place.endswith("/step")}
    assert counts == {2.0 * config.training.r_updates}


def test_the_newest_pairs_are_held_out(run, monkeypatch):
    banks = []
    monkeypatch.setattr(module, "fit", lambda R, bank, *_, **options: banks.append((bank, options)))
    buffer = run.load_checkpoint()["buffers"][0]

    found = refit(run, passes=3, batch_size=4)

    (bank, options), = banks  # fmt: skip
    assert torch.equal(bank.shifted, torch.cat([pair[1] for pair in buffer[:-1]]))
    assert (found.test.pairs, found.train.pairs) == (4, 4 * len(buffer) - 4)
    assert options["steps"] * 4 == 3 * len(bank)


@pytest.mark.parametrize("option", ["weight_decay", "label_smoothing"])
def test_decay_and_smoothing_reach_the_fit(run, option):
    with_it, without = (
        refit(run, passes=1, batch_size=4, **{option: value}).R.head.weight for value in (0.5, 0.0)
    )
    assert not torch.equal(with_it, without)


def test_a_warm_start_begins_with_the_reconstructor_of_the_run(run, monkeypatch):
    begun = []

    def noted(R, *_, **__):
        begun.append({name: tensor.clone() for name, tensor in R.state_dict().items()})

    monkeypatch.setattr(module, "fit", noted)
    own = run.load_checkpoint()["R"]

    refit(run, batch_size=4, warm_start=True)
    refit(run, batch_size=4)

    warm, cold = begun
    assert all(torch.equal(warm[name], tensor) for name, tensor in own.items())
    assert not torch.equal(cold["head.weight"], own["head.weight"])


def test_it_repeats_itself(run):
    one, two, other = (refit(run, passes=1, batch_size=4, seed=seed).R for seed in (1, 1, 2))
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"passes": 0}, "`passes` must be at least 1, got 0"),
        ({"batch_size": 1}, "`batch_size` must be at least 2, got 1"),
        ({"learning_rate": -1.0}, "`learning_rate` must be positive and finite, got -1.0"),
        ({"scale": 0.0}, "`scale` must be positive and finite, got 0.0"),
        ({"weight_decay": -0.1}, "`weight_decay` must be finite and at least 0, got -0.1"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be in \[0, 1\), got 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(run, options, words):
    with pytest.raises(ValueError, match=words):
        refit(run, **options)


def test_a_run_without_a_buffer_is_refused(config, tmp_path):
    own = config.replace(r_updates=1, steps=1)
    run = RunFolder.create(tmp_path / "plain", asdict(own))
    list(train(run, own))
    with pytest.raises(ValueError, match="no buffer of two batches or more"):
        refit(run)


def test_what_was_measured_with_the_old_reconstructor_is_not_left_to_lie(run):
    run.write_json("rca.json", {"step": 4})
    before = weights(run)
    with pytest.raises(ValueError, match=r"rca\.json was measured with the reconstructor"):
        refit(run)
    assert all(torch.equal(v, before[place]) for place, v in weights(run).items())


def test_the_new_one_may_be_of_another_kind_and_the_run_goes_on_with_it(run):
    found = refit(run, passes=1, batch_size=4, reconstructor="deep-difference")

    own = run_config(run)
    assert own.networks.reconstructor == "deep-difference"
    shapes = {name: v.shape for name, v in open_run(run).R.state_dict().items()}
    assert shapes == {name: v.shape for name, v in found.R.state_dict().items()}
    assert [r["step"] for r in train(run, own.replace(steps=5))] == [4]


def test_a_warm_start_and_another_kind_are_refused_and_nothing_changes(run):
    before = weights(run)
    with pytest.raises(ValueError, match=r"`warm_start` goes on .*'difference'.*'deep-difference'"):
        refit(run, warm_start=True, reconstructor="deep-difference")
    with pytest.raises(ValueError, match="`reconstructor` 'lenet' needs images of"):
        refit(run, reconstructor="lenet")
    assert run_config(run).networks.reconstructor == "difference"
    assert all(torch.equal(v, before[place]) for place, v in weights(run).items())


def test_a_fit_in_bfloat16_is_another_but_its_weights_are_not_rounded(run):
    exact, rounded = (
        refit(run, passes=1, batch_size=4, autocast=mode).R.head.weight for mode in ("off", "bf16")
    )
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scaled_directions_shift_as_before_by_s_over_scale(run, monkeypatch, scale):
    banks = []
    monkeypatch.setattr(module, "fit", lambda R, bank, *_, **options: banks.append(bank))
    before, buffer = open_run(run), run.load_checkpoint()["buffers"][0]
    x_T, k, s = before.draw(4)

    refit(run, batch_size=4, scale=scale)

    after, S = open_run(run), before.config.shift.S
    changed = (before.shifted(x_T, k, s) - before.real(x_T)).abs().max()
    assert changed > 1e-3
    torch.testing.assert_close(after.shifted(x_T, k, s / scale), before.shifted(x_T, k, s),
                               atol=1e-5, rtol=0)  # fmt: skip
    kept = [(y[m], s[m] / scale) for _, y, _, s in buffer for m in [(s / scale).abs() <= S]]
    pairs = run.load_checkpoint()["buffers"][0]
    assert torch.equal(torch.cat([pair[3] for pair in pairs]), torch.cat([s for _, s in kept]))
    assert torch.equal(torch.cat([pair[1] for pair in pairs]), torch.cat([y for y, _ in kept]))
    (bank,) = banks
    assert torch.equal(bank.s, torch.cat([pair[3] for pair in pairs[:-1]]))
    assert (sum(len(s) for _, s in kept) < sum(len(pair[3]) for pair in buffer)) == (scale < 1)


def test_the_average_is_scaled_too_and_batches_without_a_pair_are_gone(run):
    checkpoint, block = run.load_checkpoint(), open_run(run).shift_block
    average = {f"module.{name}": v for name, v in block.state_dict().items()}
    average["n_averaged"] = torch.tensor(3)
    far = [[v[:1] for v in checkpoint["buffers"][0][0]]]
    far[0][3] = torch.tensor([4.0])

    found = rescaled({**checkpoint, "average": average, "buffers": [far]}, block, 0.5, 5.0)

    assert found["buffers"] == [[]]
    assert torch.equal(found["average"]["module.weight"], 0.5 * block.weight)
    assert torch.equal(found["average"]["module.conv_in.weight"], block.conv_in.weight)
    assert found["average"]["n_averaged"] == 3
