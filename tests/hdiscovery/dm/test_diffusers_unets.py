"""Diffusers' networks as they are: split where h-space is, to the bit what they are unsplit."""

import diffusers
import pytest
import torch
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.conditioned import under
from hdiscovery.dm.diffusers_model import diffusers_model
from hdiscovery.dm.diffusers_unets import ConditionUNet, UnconditionalUNet
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.open import load_dm
from hdiscovery.dm.prediction import PredictsNoise
from hdiscovery.networks.discriminator import build_discriminator

from chainograd.samplers import NoiseSchedule

PLAIN = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
TEXT = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16, "attention_head_dim": 4, "in_channels": 3, "out_channels": 3,
}  # fmt: skip


def random_weights(module):
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return module.requires_grad_(False).eval()


def plain(**changes):
    return random_weights(diffusers.UNet2DModel(**{**PLAIN, **changes}))


def text(**changes):
    return random_weights(diffusers.UNet2DConditionModel(**{**TEXT, **changes}))


def batch(unet, n=3):
    config = unet.config
    x = torch.randn(n, config.in_channels, config.sample_size, config.sample_size)
    return x, torch.tensor([999, 500, 0])[:n]


SKIPS = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
}


@pytest.mark.parametrize(
    ("changes", "y"),
    [
        ({}, None),
        ({"center_input_sample": True}, None),
        ({"freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0}, None),
        ({"downsample_type": "resnet", "upsample_type": "resnet", "out_channels": 6}, None),
        ({"resnet_time_scale_shift": "scale_shift", "attention_head_dim": None}, None),
        ({"mid_block_type": None}, None),
        ({"add_attention": False, "layers_per_block": 2}, None),
        ({"time_embedding_type": "learned", "num_train_timesteps": 1000}, None),
        ({"num_class_embeds": 10}, torch.tensor([3, 0, 9])),
        ({"class_embed_type": "timestep"}, torch.tensor([3, 0, 9])),
        (SKIPS, None),
    ],
)
def test_an_unconditional_model_is_to_the_bit_what_it_is_unsplit(changes, y):
    theirs = plain(**changes)
    ours, (x, t) = UnconditionalUNet(theirs).eval(), batch(theirs)

    expected = theirs(x, t, class_labels=y).sample
    encoded = ours.encode(x, t, y)
    h = ours.middle(encoded)

    assert torch.equal(ours(x, t, y), expected)
    assert torch.equal(ours.decode(h, encoded), expected)
    assert h.shape[1:] == ours.h_shape
    assert encoded.embedding.shape[1] == ours.embedding_channels
    assert not torch.equal(ours.decode(h + 1, encoded), expected)


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {}),
        ({"center_input_sample": True, "mid_block_type": None}, {}),
        ({"mid_block_type": "UNetMidBlock2D", "time_embedding_act_fn": "silu"}, {}),
        ({"class_embed_type": "timestep", "class_embeddings_concat": True}, "class_labels"),
        ({"num_class_embeds": 10}, "class_labels"),
        ({"encoder_hid_dim": 16, "encoder_hid_dim_type": "text_proj"}, {}),
        (
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 4,
             "projection_class_embeddings_input_dim": 6 + 4 * 6},
            {"text_embeds": torch.ones(3, 6), "time_ids": torch.arange(18.0).view(3, 6)},
        ),
        ({"down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
          "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
          "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, {}),
    ],
)  # fmt: skip
def test_a_conditional_model_is_to_the_bit_what_it_is_unsplit(changes, more):
    theirs = text(**changes)
    ours, (x, t) = ConditionUNet(theirs).eval(), batch(theirs)
    states, labels = torch.randn(3, 5, 16), None
    if more == "class_labels":
        more, labels = {}, torch.tensor([3, 0, 9])
    named = {} if labels is None else {"class_labels": labels}

    expected = theirs(x, t, states, class_labels=labels, added_cond_kwargs=dict(more)).sample
    encoded = ours.encode(x, t, {"encoder_hidden_states": states, **more, **named})
    h = ours.middle(encoded)

    assert torch.equal(ours.decode(h, encoded), expected)
    assert h.shape[1:] == ours.h_shape
    assert encoded.embedding.shape[1] == ours.embedding_channels
    if not (more or named):
        assert torch.equal(ours(x, t, states), expected)
    assert not torch.allclose(ours.decode(h, encoded), ours.decode(h + 1, encoded))


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_a_batch_that_holds_all_twice_decodes_as_two(prediction):
    dm = diffusers_model(
        text(), diffusers.DDPMScheduler(prediction_type=prediction),
        condition=torch.randn(1, 5, 16),
    )  # fmt: skip
    x, t = batch(dm.unet.unet.unet.theirs)
    encoded = dm.unet.encode(x, t)
    h = dm.unet.middle(encoded)

    both = dm.unet.decode(torch.cat([h, h + 1]), encoded.twice())

    apart = torch.cat([dm.unet.decode(h, encoded), dm.unet.decode(h + 1, encoded)])
    torch.testing.assert_close(both, apart, rtol=1e-4, atol=1e-4)


def test_a_network_that_knows_the_noise_says_so_whatever_it_predicts():
    schedule = NoiseSchedule.linear()
    x_0, noise, t = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8), torch.tensor([999, 400, 0])
    x_t = schedule.noise(x_0, t, noise)
    a = schedule.alpha_bars[t].float().view(3, 1, 1, 1)
    answers = {"v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x_0, "sample": x_0}
    for prediction, answer in answers.items():
        network = UnconditionalUNet(plain()).eval()
        network.decode = lambda h, encoded, answer=answer: torch.cat([answer, answer], dim=1)

        found = PredictsNoise(network, schedule, prediction)(x_t, t)

        # At t = 0, x_0 is told from x_t to 1 part in 100 of the noise.
        torch.testing.assert_close(found, noise, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample", "epsilon"])
def test_our_ddim_samples_a_model_of_any_prediction_as_diffusers_does(prediction):
    theirs = plain(center_input_sample=True)
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction, clip_sample=False, timestep_spacing="trailing",
        set_alpha_to_one=True, beta_schedule="scaled_linear",
    )  # fmt: skip
    dm, x = diffusers_model(theirs, scheduler), torch.randn(2, 3, 8, 8)
    scheduler.set_timesteps(5)
    from chainograd.samplers import DDIM

    times = (*scheduler.timesteps.tolist(), -1)
    step = DDIM(lambda x, t: dm.unet(x, t)[:, :3], dm.schedule, times)
    ours = expected = x
    for i, t in enumerate(scheduler.timesteps):
        ours = step(ours, i)
        expected = scheduler.step(theirs(expected, t).sample, t, expected).prev_sample

    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_a_folder_that_no_adm_unet_agrees_with_is_a_model_all_the_same(tmp_path):
    theirs = plain(freq_shift=1, block_out_channels=(32, 48))
    diffusers.DDPMPipeline(
        theirs, diffusers.DDPMScheduler(prediction_type="v_prediction")
    ).save_pretrained(tmp_path / "mine")

    dm = load_dm(tmp_path / "mine")

    assert (dm.name, dm.image_shape, dm.unet.h_shape) == ("mine", (3, 8, 8), (48, 4, 4))
    assert not dm.unet.training
    assert not any(p.requires_grad for p in dm.unet.parameters())
    x, t = batch(theirs)
    alpha_bar = dm.schedule.alpha_bars[t].float().view(3, 1, 1, 1)
    v = theirs(x, t).sample
    torch.testing.assert_close(dm.unet(x, t), alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * x)
    with pytest.raises(ValueError, match="ADM's UNet only"):
        _ = dm.config


def test_a_folder_of_a_conditional_model_says_how_to_use_it(tmp_path):
    text().save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")

    with pytest.raises(ValueError, match=r"diffusers_model\(unet, scheduler, condition=…"):
        load_dm(tmp_path)


def test_a_class_of_adms_is_a_model_of_its_own():
    config = UNetConfig(image_size=8, num_channels=32, channel_mult=(1, 1), num_res_blocks=1,
                        num_classes=4)  # fmt: skip
    unet = random_weights(ADMUNet(config))
    dm = under(DiffusionModel(unet, NoiseSchedule.linear(), "toy"), 2)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([999, 5, 0])

    assert torch.equal(dm.unet(x, t), unet(x, t, torch.tensor([2, 2, 2])))
    with pytest.raises(ValueError, match="fixed by this model's `condition`"):
        dm.unet(x, t, torch.tensor([1, 1, 1]))
    assert build_discriminator(dm)(x).shape == (3,)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (plain, {"sample_size": (8, 16)}, r"`sample_size`.*\(8, 16\).*square"),
        (plain, {"sample_size": None}, "`sample_size`.*None.*`image_size=`"),
        (plain, {"sample_size": 7}, "`sample_size`.*7.*multiple of 2"),
        (plain, {"time_embedding_type": "fourier"}, "`time_embedding_type`.*fourier"),
        (text, {"in_channels": 9}, "`out_channels`.*3, expected 9 or 18"),
        (plain, {"time_embedding_type": "learned", "num_train_timesteps": 50}, "is 50.*1000"),
        (text, {}, "`condition` is missing"),
        (plain, {"num_class_embeds": 3}, "`condition` is missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_or_sampled_is_refused_by_name(make, options, message):
    with pytest.raises(ValueError, match=message):
        diffusers_model(make(**options), diffusers.DDPMScheduler())


def test_conditions_precisions_and_predictions_that_do_not_go_are_refused_by_name():
    scheduler = diffusers.DDPMScheduler()
    with pytest.raises(ValueError, match="`condition` is given"):
        diffusers_model(plain(), scheduler, condition=3)
    with pytest.raises(ValueError, match=r"`condition`.*\(3, 5, 16\), expected \[1, …\]"):
        diffusers_model(text(), scheduler, condition=torch.zeros(3, 5, 16))
    with pytest.raises(ValueError, match=r"float16.*`unet.float\(\)`"):
        diffusers_model(plain().half(), scheduler)
    with pytest.raises(ValueError, match=r"`prediction_type`.*'flow'"):
        diffusers_model(plain(), {**scheduler.config, "prediction_type": "flow"})
    with pytest.raises(ValueError, match="`unet` is a Linear"):
        diffusers_model(torch.nn.Linear(1, 1), scheduler)


@pytest.mark.parametrize("make", [plain, text])
def test_the_discriminator_is_an_encoder_of_the_same_kind_that_begins_at_one_half(make):
    condition = None if make is plain else torch.randn(1, 5, 16)
    dm = diffusers_model(make(), diffusers.DDPMScheduler(), condition=condition)
    D, x = build_discriminator(dm), torch.randn(2, 3, 8, 8)

    assert torch.equal(D(x), torch.zeros(2))

    for p in D.parameters():
        torch.nn.init.normal_(p, std=0.1)
    D(x).square().sum().backward()
    assert [name for name, p in D.named_parameters() if p.grad is None or not p.grad.any()] == []
    decoder = (".up_blocks.", ".conv_norm_out.", ".conv_out.", "part_0")
    shapes = {
        k: v.shape for k, v in dm.unet.state_dict().items() if not any(d in k for d in decoder)
    }
    encoder = {k.removeprefix("encoder."): v.shape for k, v in D.state_dict().items()}
    assert shapes == {k: v for k, v in encoder.items() if "theirs" in k}
