"""What a user is told of a model's file, and what becomes of the answers."""

import re
import shlex
from dataclasses import replace

import diffusers
import pytest
import torch
from hdiscovery.cli import main
from hdiscovery.data.images import save_image
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.open import load_dm

from chainograd.samplers import NoiseSchedule

TINY = UNetConfig(
    image_size=8, in_channels=1, num_channels=32, channel_mult=(1, 2), num_res_blocks=1,
    attention_resolutions=(4,), num_heads=4, attention_order="new", learn_sigma=True,
)  # fmt: skip
ANSWERS = ["--image-size", "8", "--heads", "4", "--attention-order", "new", "--schedule", "cosine"]


def run(*words):
    return main([str(word) for word in words])


def weights_of(config):
    torch.manual_seed(0)
    state = ADMUNet(config).state_dict()
    return {key: torch.randn_like(value) * 0.1 for key, value in state.items()}


@pytest.fixture
def weights(tmp_path):
    torch.save(weights_of(TINY), tmp_path / "ema.pt")
    return tmp_path / "ema.pt"


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for j in range(3):
        generator = torch.Generator().manual_seed(j)
        save_image(torch.rand(1, 8, 8, generator=generator) * 2 - 1, folder / f"{j}.png")
    return folder


def test_published_weights_with_answers_become_the_model_they_are_of(tmp_path, weights, capsys):
    out = tmp_path / "dm.safetensors"

    assert run("convert", weights, *ANSWERS, "--train-steps", 50, "--out", out) == 0

    assert "not checked" in capsys.readouterr().out
    dm = load_dm(out)
    assert dm.config == TINY
    assert torch.equal(dm.schedule.betas, NoiseSchedule.cosine(50).betas)
    state = torch.load(weights)
    assert all(torch.equal(value, state[key]) for key, value in dm.unet.state_dict().items())


def test_weights_without_answers_are_refused_with_the_command_to_run(tmp_path, weights, capsys):
    """Wherever a model is taken; and the command does it, once its gaps are filled."""
    with pytest.raises(ValueError, match="hdiscovery convert") as refused:
        load_dm(weights)
    assert run("export", weights, "--out", tmp_path / "folder") == 2
    assert str(refused.value) in capsys.readouterr().err
    told = re.search(r"hdiscovery (convert .*?\.safetensors)\.", str(refused.value))
    assert told is not None
    words = told[1]
    for gap, answer in {"PIXELS": "8", "legacy|new": "new", "linear|cosine": "linear"}.items():
        words = words.replace(gap, answer)
    words = words.replace("--heads N", "--heads 4").replace(" ema.safe", f" {tmp_path}/ema.safe")

    assert run(*shlex.split(words)) == 0
    assert load_dm(tmp_path / "ema.safetensors").config == TINY


def test_what_is_still_to_be_answered_is_named_and_what_is_answered_is_kept(weights, capsys):
    assert run("convert", weights, "--heads", 4, "--schedule", "linear", "--out", "x") == 2

    message = capsys.readouterr().err
    assert "--heads 4 --schedule linear --image-size PIXELS --attention-order legacy|new" in message


def test_answers_beside_an_architecture_are_refused_but_for_the_schedule(tmp_path, capsys):
    torch.save(weights_of(replace(TINY, num_heads=1)), tmp_path / "ema.pt")
    words = ("convert", tmp_path / "ema.pt", "--architecture", "MNIST32", "--out", tmp_path / "x")

    assert run(*words, "--heads", 4) == 2
    assert "`--heads 4` and `--architecture` both describe the network" in capsys.readouterr().err
    assert run(*words, "--schedule", "cosine") == 2
    assert "do not fit the architecture" in capsys.readouterr().err


def test_an_optimizers_state_is_refused_with_the_reason(tmp_path, capsys):
    parameter = torch.nn.Parameter(torch.zeros(2))
    torch.save(torch.optim.AdamW([parameter]).state_dict(), tmp_path / "opt010000.pt")

    for command in (["inspect"], ["convert", "--out", tmp_path / "x"]):
        assert run(command[0], tmp_path / "opt010000.pt", *command[1:]) == 2
        message = capsys.readouterr().err
        assert "state of an optimizer" in message
        assert "`ema_*.pt` is the one to take" in message


def test_answers_that_others_clearly_beat_are_refused_with_both_figures(
    tmp_path, weights, images, capsys, monkeypatch
):
    from hdiscovery.dm import candidates

    def error_of(unet, schedule, probe):
        right = unet.config.num_heads == 4 and unet.config.attention_order == "new"
        return torch.tensor([0.1, 0.2, 0.3]) + (0 if right else 1)

    monkeypatch.setattr(candidates, "noise_error", error_of)
    out = tmp_path / "dm.safetensors"
    wrong = [word if word != "new" else "legacy" for word in ANSWERS]

    assert run("convert", weights, *wrong, "--data", images, "--out", out) == 2
    message = capsys.readouterr().err
    assert "--attention-order legacy --schedule cosine` the noise-prediction error on 3" in message
    assert "is 1.2000, and with `--image-size 8 --heads 4 --attention-order new" in message
    assert not out.exists()
    assert run("convert", weights, *ANSWERS, "--data", images, "--out", out) == 0


def test_inspecting_weights_tells_what_they_show_asks_for_the_rest_and_ranks_it(
    weights, images, capsys
):
    assert run("inspect", weights) == 0
    told = capsys.readouterr().out
    assert re.search(r"widths +32 64 \(32 at its base\)", told)
    assert "on levels 1;" in told
    assert "learn_sigma True" in told
    assert told.count("to be answered") == 4

    assert run("convert", weights, "--inspect", "--image-size", 8, "--data", images) == 0
    told = capsys.readouterr().out
    assert "on 3 images" in told
    errors = [float(e) for e in re.findall(r"^  (\d+\.\d+)  (?:fits|worse)", told, re.MULTILINE)]
    assert len(errors) >= 10
    assert errors == sorted(errors)
    assert "it does not know images of this kind" in told


def test_inspecting_a_model_tells_what_it_is(tmp_path, capsys):
    assert run("inspect", "MNIST32-small") == 0
    told = capsys.readouterr().out
    assert re.search(r"h-space +128 x 4 x 4", told)
    assert re.search(r"parameters +2,777,601", told)
    assert re.search(r"schedule +linear, 1000 steps", told)
    error = re.search(r"noise error +(\d\.\d+) on 8 samples of pure noise", told)
    assert error is not None
    assert float(error[1]) < 0.01  # it was trained

    unet = diffusers.UNet2DModel(
        8, 3, 3, block_out_channels=(32, 64), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, norm_num_groups=8,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", beta_end=0.03)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "mine")
    assert run("inspect", tmp_path / "mine") == 0
    told = capsys.readouterr().out
    assert "diffusers UNet2DModel, of v_prediction" in told
    assert "pure noise says nothing here" in told
    assert re.search(r"schedule +of its own", told)
    assert run("inspect", "MNIST32-small", "--heads", 4) == 2
    assert "says which architecture it holds" in capsys.readouterr().err


def test_one_image_is_too_few_to_tell_anything(weights, images, capsys):
    assert run("convert", weights, "--inspect", "--image-size", 8, "--data", images / "0.png") == 2

    assert "on two images or more: give a folder" in capsys.readouterr().err


def test_a_state_dict_as_safetensors_is_read_as_one(tmp_path):
    from hdiscovery.dm.conversion import convert
    from safetensors.torch import save_file

    save_file(weights_of(TINY), tmp_path / "ema.safetensors")
    with pytest.raises(ValueError, match=r"convert .*ema\.safetensors --image-size PIX.*ema-dm\."):
        load_dm(tmp_path / "ema.safetensors")

    config = convert(
        tmp_path / "ema.safetensors", tmp_path / "dm.safetensors", answers=answers_of_tiny()
    )

    assert config == TINY


def answers_of_tiny():
    from hdiscovery.dm.adm_answers import Answers

    return Answers(image_size=8, num_heads=4, attention_order="new", schedule="linear")
