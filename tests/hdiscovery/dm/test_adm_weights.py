"""Published weights: read strictly, averaged ones first, everything else refused."""

import json
from dataclasses import asdict

import pytest
import torch
from hdiscovery.cli import main
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.open import load_dm

TINY = UNetConfig(
    image_size=8, in_channels=1, num_channels=32, channel_mult=(1, 2), num_res_blocks=1,
    attention_resolutions=(4,), attention_order="new",
)  # fmt: skip


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {key: torch.randn_like(value) for key, value in ADMUNet(TINY).state_dict().items()}


@pytest.fixture
def architecture(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(asdict(TINY)))
    return path


def convert(weights, architecture, out):
    return main(["convert", str(weights), "--architecture", str(architecture), "--out", str(out)])


@pytest.mark.parametrize("kind", ["adm", "pdae"])
def test_adm_and_pdae_files_become_a_model_in_full_precision(tmp_path, state, architecture, kind):
    content = state
    if kind == "pdae":
        raw = {key: torch.zeros_like(value) for key, value in state.items()}
        content = {"step": 7, "denoise_fn": raw, "ema_denoise_fn": state}
    torch.save(content, tmp_path / "weights.pt")

    assert convert(tmp_path / "weights.pt", architecture, tmp_path / "dm.safetensors") == 0

    dm = load_dm(tmp_path / "dm.safetensors")
    assert dm.config == TINY
    assert all(torch.equal(dm.unet.state_dict()[key], value) for key, value in state.items())


def misfit(state):
    return {**state, "out.2.weight": torch.zeros(2, 32, 3, 3)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (misfit, "out.2.weight: expected (1, 32, 3, 3), found (2, 32, 3, 3)"),
        (lambda state: dict(list(state.items())[1:]), "1 missing"),
        (lambda state: {"state": {}, "param_groups": []}, "opt*.pt"),
        (lambda state: {"model": state}, "more than tensors (model)"),
        (lambda state: [1, 2], "no state dict"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, capsys, state, architecture, content, message):
    torch.save(content(state), tmp_path / "weights.pt")

    assert convert(tmp_path / "weights.pt", architecture, tmp_path / "dm.safetensors") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "dm.safetensors").exists()


def test_a_truncated_file_a_wrong_name_and_an_existing_target_are_refused(
    tmp_path, capsys, state, architecture
):
    whole, cut, out = tmp_path / "weights.pt", tmp_path / "cut.pt", tmp_path / "dm.safetensors"
    torch.save(state, whole)
    cut.write_bytes(whole.read_bytes()[:1000])

    assert convert(cut, architecture, out) == 2
    assert "truncated" in capsys.readouterr().err
    assert convert(tmp_path / "no.pt", architecture, out) == 2
    assert "is not a file" in capsys.readouterr().err
    assert convert(whole, "MNIST64", out) == 2
    assert "MNIST32, Anime64, CelebAHQ128, AFHQ128" in capsys.readouterr().err
    architecture.write_text('{"image_size": 8, "depth": 3}')
    assert convert(whole, architecture, out) == 2
    assert "depth" in capsys.readouterr().err
    out.write_text("mine")
    assert convert(whole, "MNIST32", out) == 2
    assert out.read_text() == "mine"
