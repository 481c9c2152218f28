"""A diffusion model in one file: what comes back, and what a file that is none of ours says."""

import json

import pytest
import torch
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.files import save_dm
from hdiscovery.dm.open import load_dm, shipped_models
from safetensors.torch import load_file, save_file

TINY = UNetConfig(
    image_size=8, in_channels=1, num_channels=32, channel_mult=(1, 2), num_res_blocks=1,
    attention_resolutions=(4,), attention_order="new",
)  # fmt: skip


@pytest.fixture
def unet():
    torch.manual_seed(0)
    unet = ADMUNet(TINY)
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return unet


@pytest.fixture
def saved(tmp_path, unet):
    path = tmp_path / "tiny.safetensors"
    save_dm(path, unet, schedule="linear", T=500, data="toys")
    return path


def rewrite(path, *, metadata=None, state=None):
    """Write a file like ``path`` with other metadata entries or another state."""
    entries = {
        "format": "hdiscovery-dm-1",
        "unet": json.dumps({"image_size": 8, "in_channels": 1, "num_channels": 32,
                            "channel_mult": [1, 2], "num_res_blocks": 1,
                            "attention_resolutions": [4]}),
        "schedule": json.dumps({"name": "linear", "num_train_steps": 1000}),
        **(metadata or {}),
    }  # fmt: skip
    save_file(load_file(path) if state is None else state, path, metadata=entries)


def test_what_was_saved_comes_back_frozen_and_rounded_to_half_precision(unet, saved):
    model = load_dm(saved)

    assert model.config == TINY
    assert (model.name, model.image_shape) == ("tiny", (1, 8, 8))
    assert model.schedule.num_train_steps == 500
    assert not model.unet.training
    loaded = model.unet.state_dict()
    for key, value in unet.state_dict().items():
        assert loaded[key].dtype == torch.float32
        assert torch.equal(loaded[key], value.half().float())
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_saving_leaves_the_network_as_it_was_and_no_partial_file(unet, tmp_path):
    before = {key: value.clone() for key, value in unet.state_dict().items()}

    save_dm(tmp_path / "a.safetensors", unet)

    assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]
    assert all(torch.equal(before[k], v) for k, v in unet.state_dict().items())
    assert all(p.requires_grad for p in unet.parameters())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_schedule_is_the_one_it_was_saved_with(unet, tmp_path, schedule):
    save_dm(tmp_path / "a.safetensors", unet, schedule=schedule)

    last = load_dm(tmp_path / "a.safetensors").schedule.alpha_bar(500)

    assert last == pytest.approx({"linear": 0.0778, "cosine": 0.4923}[schedule], rel=1e-2)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])

    with pytest.raises(ValueError, match=r"tiny\.safetensors cannot be read.*truncated"):
        load_dm(saved)


def test_a_file_of_another_kind_is_refused_by_name(tmp_path):
    (tmp_path / "w.txt").write_text("not weights")
    torch.save({"w": torch.zeros(2)}, tmp_path / "w.pt")

    with pytest.raises(ValueError, match=r"w\.txt cannot be read as safetensors.*another kind"):
        load_dm(tmp_path / "w.txt")
    with pytest.raises(ValueError, match=r"w\.pt: The state dict is not an ADM UNet's"):
        load_dm(tmp_path / "w.pt")


def test_weights_without_an_architecture_say_how_to_add_it(saved):
    save_file(load_file(saved), saved)

    with pytest.raises(ValueError, match="hdiscovery convert"):
        load_dm(saved)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"unet": "{"}, "damaged"),
        ({"unet": json.dumps({"image_size": 8, "depth": 3})}, r"unknown.*\['depth'\]"),
        ({"unet": json.dumps({"image_size": 9})}, "cannot be halved"),
        ({"schedule": "{}"}, "damaged"),
        ({"schedule": json.dumps({"name": "sigmoid", "num_train_steps": 1000})}, "sigmoid"),
        ({"schedule": json.dumps({"name": "linear", "num_train_steps": 5})}, "damaged"),
    ],
    ids=["broken", "unknown field", "contradiction", "empty", "unknown schedule", "short schedule"],
)
def test_metadata_that_makes_no_sense_is_refused_with_the_file(saved, metadata, message):
    rewrite(saved, metadata=metadata)

    with pytest.raises(ValueError, match=message) as refused:
        load_dm(saved)

    assert "tiny.safetensors" in str(refused.value)


def test_a_state_that_does_not_fit_says_what_was_expected_and_what_was_found(saved):
    state = load_file(saved)
    del state["out.2.bias"]
    state["head.weight"] = torch.zeros(1)
    state["out.2.weight"] = torch.zeros(3, 32, 3, 3)
    rewrite(saved, state=state)

    with pytest.raises(ValueError, match="do not fit the architecture") as refused:
        load_dm(saved)

    text = str(refused.value)
    assert "1 missing (out.2.bias)" in text
    assert "1 unexpected (head.weight)" in text
    assert "out.2.weight: expected (1, 32, 3, 3), found (3, 32, 3, 3)" in text


def test_many_misfits_are_counted_and_a_few_are_named(saved):
    rewrite(saved, state={"w": torch.zeros(1)})

    with pytest.raises(ValueError, match=r"\d\d+ missing \(([\w.]+, ){3}…\)"):
        load_dm(saved)


def test_an_unknown_name_lists_the_models_that_are_shipped():
    assert shipped_models()

    with pytest.raises(FileNotFoundError, match="'MNIST23'") as refused:
        load_dm("MNIST23")

    assert all(name in str(refused.value) for name in shipped_models())


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_every_shipped_model_loads_and_predicts(name):
    model = load_dm(name)
    x = torch.randn(1, *model.image_shape)

    epsilon = model.unet(x, torch.tensor([999]))

    # At the last time nearly all of x is noise.
    assert torch.nn.functional.mse_loss(epsilon, x) < 0.1
