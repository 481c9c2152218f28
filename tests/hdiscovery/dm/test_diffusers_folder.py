"""Folders of diffusers' and noise schedules of its schedulers: there, back, sampled, refused."""

import json
import sys

import diffusers
import pytest
import torch
from hdiscovery.cli import main
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.diffusers_schedule import schedule_from, scheduler_config
from hdiscovery.dm.export.diffusers_folder import read_folder, write_folder
from hdiscovery.dm.files import save_dm
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.open import load_dm, shipped_models
from hdiscovery.dm.schedules import schedule_name
from hdiscovery.dm.walk import sample
from safetensors.torch import load_file, save_file

from chainograd.samplers import DDIM, NoiseSchedule, time_grid

TINY = UNetConfig(
    image_size=8, in_channels=1, num_channels=32, channel_mult=(1, 2), num_res_blocks=1,
    attention_resolutions=(4,), num_heads=4, attention_order="legacy",
)  # fmt: skip
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012,
          "num_train_timesteps": 1000}  # fmt: skip


def run(*words):
    return main([str(word) for word in words])


def tiny(schedule=None, **changes):
    torch.manual_seed(0)
    unet = ADMUNet(UNetConfig(**{**{f: getattr(TINY, f) for f in TINY.__slots__}, **changes}))
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.1)
    unet.requires_grad_(False).eval()
    return DiffusionModel(unet, schedule or NoiseSchedule.linear(), "tiny")


@pytest.fixture
def folder(tmp_path):
    write_folder(tiny(), tmp_path / "folder")
    return tmp_path / "folder"


def rewrite(path, **changes):
    """Change entries of a JSON file; None removes one."""
    entries = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in entries.items() if value != ...}))


def diffusers_samples(pipeline, x, num_steps):
    """DDIMPipeline's loop from given noise, without its clipping to images at the end."""
    pipeline.scheduler.set_timesteps(num_steps)
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    return x


def run_chain(step, x):
    with torch.no_grad():
        for i in range(step.num_steps):
            x = step(x, i)
    return x


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_model_goes_to_a_folder_and_comes_back_to_the_bit(tmp_path, dtype):
    first, folder, last = tmp_path / "a.safetensors", tmp_path / "f", tmp_path / "b.safetensors"
    save_dm(first, tiny().unet, schedule="cosine", T=50, dtype=dtype)

    assert run("export", first, "--out", folder) == 0
    assert run("convert", folder, "--out", last) == 0

    a, b = load_file(first), load_file(last)
    assert a.keys() == b.keys()
    assert all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)
    schedules = [load_dm(path).schedule.betas for path in (first, last)]
    assert torch.equal(*schedules)
    assert load_dm(last).config.attention_order == "legacy"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in (first, folder, last)
    )


def test_the_shipped_model_goes_there_and_back_as_a_file_of_the_same_bits(tmp_path):
    assert run("export", "MNIST32-small", "--out", tmp_path / "mnist") == 0
    assert run("convert", tmp_path / "mnist", "--out", tmp_path / "dm.safetensors") == 0

    a, b = load_file(shipped_models()["MNIST32-small"]), load_file(tmp_path / "dm.safetensors")
    assert a.keys() == b.keys()
    assert all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)
    assert load_dm(tmp_path / "dm.safetensors").config == load_dm("MNIST32-small").config


def test_diffusers_samples_the_shipped_model_as_we_do(tmp_path):
    dm = load_dm("MNIST32-small")
    write_folder(dm, tmp_path / "mnist")
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "mnist")
    x_T = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    theirs = diffusers_samples(pipeline, x_T, 5)

    times = (*pipeline.scheduler.timesteps.tolist(), -1)
    assert times == (999, 799, 599, 399, 199, -1)
    ours = run_chain(DDIM(dm.unet, dm.schedule, times), x_T)
    # Float32 alpha-bars on their side; a step from 999 multiplies by up to 157.
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert ours.std() > 0.3


def test_a_step_for_every_training_time_is_our_own_grid_in_diffusers(tmp_path):
    dm = tiny(NoiseSchedule.linear(25))
    write_folder(dm, tmp_path / "f")
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "f")

    x_T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    theirs = diffusers_samples(pipeline, x_T, 25)

    ours = sample(dm.unet, dm.schedule, 2, num_steps=25, seed=3)
    # In the first step both divide by the root of alpha_bar_24, 3e-4, which is float32 there.
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * ours.abs().max().item())


def test_with_the_last_alpha_bar_of_index_0_their_grid_is_the_authors():
    schedule = NoiseSchedule.linear()
    scheduler = diffusers.DDIMScheduler(**{**scheduler_config(schedule), "set_alpha_to_one": False})

    for M in (1, 5, 20, 40, 500):
        scheduler.set_timesteps(M)
        assert (*scheduler.timesteps.tolist(), 0) == time_grid(M, convention="author")
    assert scheduler.final_alpha_cumprod == pytest.approx(schedule.alpha_bar(0), rel=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear", "num_train_timesteps": 1000},
        {"beta_schedule": "linear", "beta_start": 1e-3, "beta_end": 0.05,
         "num_train_timesteps": 100},
        SCALED,
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100},
        {"trained_betas": [0.1, 0.2, 0.5]},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_a_schedule_is_the_one_of_the_scheduler_and_goes_back(kind, config):
    scheduler = getattr(diffusers, kind)(**config)

    schedule = schedule_from(scheduler.config)
    back = diffusers.DDIMScheduler(**scheduler_config(schedule))

    # Theirs is a product of up to 1000 float32 numbers.
    for theirs in (scheduler, back):
        found = theirs.alphas_cumprod.double()
        torch.testing.assert_close(found, schedule.alpha_bars, rtol=2e-4, atol=0)
    assert torch.allclose(scheduler.betas.double(), schedule.betas, rtol=1e-6, atol=2e-9)


@pytest.mark.parametrize("T", [2, 21, 50, 1000, 4000])
def test_named_schedules_keep_their_names_through_diffusers_config(T):
    named = {"cosine": NoiseSchedule.cosine(T)} | (
        {"linear": NoiseSchedule.linear(T)} if T > 20 else {}
    )
    for name, schedule in named.items():
        config = scheduler_config(schedule)
        assert "trained_betas" not in config
        assert schedule_name(schedule_from(config)) == name
        scheduler = diffusers.DDPMScheduler(trained_betas=schedule.betas.float().tolist())
        assert schedule_name(schedule_from(scheduler.config)) == name


def test_a_schedule_near_a_named_one_has_no_name():
    config = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.0201,
              "num_train_timesteps": 1000}  # fmt: skip

    assert schedule_name(schedule_from(config)) is None
    assert schedule_name(schedule_from({**config, "beta_end": 0.02})) == "linear"
    assert schedule_name(schedule_from(SCALED)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "v_prediction"}, r"`prediction_type`.*'v_prediction', .*'epsilon'"),
        ({"prediction_type": "sample"}, r"`prediction_type`.*'sample', expected 'epsilon'"),
        ({"rescale_betas_zero_snr": True}, r"`rescale_betas_zero_snr`.* True, expected False"),
        ({"snr_shift_scale": 3.0}, r"`snr_shift_scale`.* 3\.0"),
        ({"beta_schedule": "sigmoid"}, r"`beta_schedule`.* 'sigmoid', expected 'linear'"),
        ({"beta_schedule": None}, r"`beta_schedule`.* None, .*`trained_betas`"),
    ],
    ids=str,
)
def test_a_scheduler_of_another_kind_is_refused_by_its_field(changes, message):
    with pytest.raises(ValueError, match=message):
        schedule_from({**SCALED, **changes})


def test_a_pipeline_that_diffusers_trains_becomes_a_model(tmp_path):
    unet = diffusers.UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, block_out_channels=(32, 64),
        layers_per_block=1, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "ddpm")

    assert run("convert", tmp_path / "ddpm", "--out", tmp_path / "dm.safetensors") == 0

    dm = load_dm(tmp_path / "dm.safetensors")
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0, 999])
    with torch.no_grad():
        # Its weights are float32, and so is the file; hence float32's rounding alone.
        torch.testing.assert_close(dm.unet(x, t), unet(x, t).sample, rtol=1e-4, atol=1e-5)
    assert dm.config.num_head_channels == 8
    assert schedule_name(dm.schedule) == "linear"


def test_a_model_whose_schedule_a_file_cannot_name_is_loaded_and_not_converted(tmp_path, capsys):
    schedule = schedule_from(SCALED)
    write_folder(tiny(schedule), tmp_path / "f")

    dm = read_folder(tmp_path / "f")
    assert not dm.unet.training
    assert not any(p.requires_grad for p in dm.unet.parameters())
    torch.testing.assert_close(dm.schedule.betas, schedule.betas)
    assert run("convert", tmp_path / "f", "--out", tmp_path / "dm.safetensors") == 2

    message = capsys.readouterr().err
    assert "`trained_betas`" in message
    assert "every command takes as it is" in message
    assert not (tmp_path / "dm.safetensors").exists()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "`prediction_type`"),
        ("scheduler/scheduler_config.json", {"beta_start": ...}, "`beta_start` is missing"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "expected 'UNet2DModel'"),
        ("unet/config.json", {"flip_sin_to_cos": False}, "`flip_sin_to_cos`"),
        ("unet/config.json", {"block_out_channels": [32, 32]}, "cannot be loaded"),
    ],
    ids=str,
)
def test_a_folder_that_says_something_else_is_refused_in_one_line(
    folder, tmp_path, capsys, file, changes, message
):
    rewrite(folder / file, **changes)

    assert run("convert", folder, "--out", tmp_path / "dm.safetensors") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "dm.safetensors").exists()


def test_weights_that_miss_a_tensor_or_are_truncated_are_refused(folder, tmp_path, capsys):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state, whole = load_file(path), path.read_bytes()
    del state["mid_block.resnets.0.conv1.bias"]
    save_file(state, path, metadata={"format": "pt"})

    assert run("convert", folder, "--out", tmp_path / "dm.safetensors") == 2
    assert "mid_block.resnets.0.conv1.bias" in capsys.readouterr().err
    path.write_bytes(whole[:5000])
    assert run("convert", folder, "--out", tmp_path / "dm.safetensors") == 2
    assert "cannot be loaded" in capsys.readouterr().err
    path.unlink()
    assert run("convert", folder, "--out", tmp_path / "dm.safetensors") == 2
    assert "cannot be loaded" in capsys.readouterr().err


def test_words_that_do_not_fit_are_refused(folder, tmp_path, capsys):
    out = tmp_path / "dm.safetensors"
    torch.save({}, tmp_path / "weights.pt")

    assert run("convert", folder, "--architecture", "MNIST32", "--out", out) == 2
    assert "Leave it out" in capsys.readouterr().err
    assert run("convert", tmp_path / "weights.pt", "--out", out) == 2
    assert "not an ADM UNet's" in capsys.readouterr().err
    assert run("convert", tmp_path / "nothing", "--out", out) == 2
    assert "nothing is not a file" in capsys.readouterr().err
    assert run("convert", tmp_path, "--out", out) == 2
    assert "has no scheduler/scheduler_config.json" in capsys.readouterr().err
    assert run("export", "MNIST32-small", "--out", folder) == 2
    assert "exists" in capsys.readouterr().err
    out.write_text("mine")
    assert run("convert", folder, "--out", out) == 2
    assert out.read_text() == "mine"


@pytest.mark.parametrize("changes", [{"learn_sigma": True}, {"num_classes": 3}], ids=str)
def test_a_model_that_no_ddim_pipeline_samples_is_not_exported(tmp_path, changes):
    with pytest.raises(ValueError, match=f"`{next(iter(changes))}`.*to_diffusers"):
        write_folder(tiny(**changes), tmp_path / "f")

    assert not list(tmp_path.iterdir())


def test_the_command_says_what_to_install_where_diffusers_is_missing(
    folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "diffusers", None)

    assert run("export", "MNIST32-small", "--out", tmp_path / "mnist") == 2
    assert "pip install 'chainograd[diffusers]'" in capsys.readouterr().err
    assert run("convert", folder, "--out", tmp_path / "dm.safetensors") == 2
    assert "pip install 'chainograd[diffusers]'" in capsys.readouterr().err


def test_the_help_shows_an_example_of_both_ways(capsys):
    assert run("convert", "--help") == 0

    shown = capsys.readouterr().out
    assert "hdiscovery convert ddpm-folder --out" in shown
    assert "hdiscovery convert MNIST32-small --to diffusers --out mnist" in shown
