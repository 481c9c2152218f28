"""How a diffusion model's training goes on."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.open import load_dm
from hdiscovery.training import pretrain
from hdiscovery.training.pretrain_config import PretrainConfig, begun


def test_a_pretraining_goes_on_as_it_was_begun(tmp_path):
    config = PretrainConfig(out=tmp_path / "dm", steps=500, batch_size=16, learning_rate=3e-4)
    content = json.loads(json.dumps(asdict(config), default=str))
    RunFolder.create(tmp_path / "dm", content)

    assert begun(tmp_path / "dm") == config


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return the config of a tiny training on noise."""
    images = torch.rand(12, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(pretrain, "load_mnist", lambda *_, image_size: (images, None))
    return PretrainConfig(out=tmp_path / "dm", steps=4, batch_size=4, save_every=1, sample_every=0,
                          device="cpu")  # fmt: skip


def test_a_pretraining_that_was_stopped_ends_with_the_bits_of_one_that_was_not(config, tmp_path):
    list(pretrain.pretrain(config))
    parts = replace(config, out=tmp_path / "parts")
    stopped = pretrain.pretrain(parts)
    next(stopped)
    next(stopped)
    stopped.close()
    torch.manual_seed(99)

    records = list(pretrain.pretrain(replace(parts, resume=True)))

    assert [record["step"] for record in records] == [2, 3]
    whole, resumed = (load_dm(folder / "dm.safetensors").unet.state_dict()
                      for folder in (config.out, parts.out))  # fmt: skip
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_pretraining_keeps_its_history_and_refuses_another_architecture(config):
    list(pretrain.pretrain(config))
    list(pretrain.pretrain(replace(config, steps=5, resume=True)))

    first, second = RunFolder.open(config.out).history()
    assert (first["event"], second["event"], second["step"]) == ("begun", "resumed", 4)
    assert second["changed"] == {"steps": [4, 5], "resume": [False, True]}
    with pytest.raises(ValueError, match="`seed` of a run cannot change on its way"):
        next(pretrain.pretrain(replace(config, seed=3, resume=True)))


def test_a_field_of_the_wrong_type_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"`steps` must be a whole number, got 4\.0"):
        PretrainConfig(out=tmp_path, steps=4.0)  # pyright: ignore
