"""ADM's UNet and diffusers' `UNet2DModel`: equal outputs where they agree, refused where not."""

import sys
from dataclasses import asdict, replace

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.dm.adm_blocks import timestep_embedding
from hdiscovery.dm.adm_config import TABLE_3, UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.export.diffusers_config import adm_config, diffusers_config
from hdiscovery.dm.export.diffusers_unet import from_diffusers, to_diffusers
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.open import load_dm
from hdiscovery.training.trainer import Trainer

from chainograd.samplers import NoiseSchedule

TIMES = torch.tensor([0, 3, 999])

AGREEING = [
    {},
    {"use_scale_shift_norm": False},
    {"resblock_updown": True},
    {"attention_resolutions": (4,), "num_heads": 4, "attention_order": "legacy"},
    {"attention_resolutions": (4,), "num_heads": 4, "attention_order": "new"},
    {"attention_resolutions": (8, 4), "num_head_channels": 16, "attention_order": "legacy"},
    {"attention_resolutions": (8, 4), "num_head_channels": 16, "attention_order": "new"},
    {"attention_resolutions": (8,), "resblock_updown": True},
    {"attention_resolutions": (8, 4), "use_scale_shift_norm": False, "num_res_blocks": 2},
    {"channel_mult": (1,)},
    {"channel_mult": (1, 3, 2), "resblock_updown": True, "attention_resolutions": (4,)},
    {"num_channels": 64, "channel_mult": (1, 1.5), "num_res_blocks": 2},
    {"learn_sigma": True, "dropout": 0.3},
    {"num_classes": 5},
]


def small(**changes):
    fields = {"image_size": 8, "in_channels": 2, "num_channels": 32, "channel_mult": (1, 2),
              "num_res_blocks": 1, "resblock_updown": False, **changes}  # fmt: skip
    return UNetConfig(**fields)


def theirs(**changes):
    """Return a `UNet2DModel` that agrees with an ADM UNet, made as a user of diffusers makes it."""
    fields = {"sample_size": 8, "in_channels": 2, "out_channels": 2, "layers_per_block": 1,
              "block_out_channels": (32, 64), "attention_head_dim": 16,
              "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
              "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), **changes}  # fmt: skip
    return randomised(UNet2DModel(**fields))


def randomised(net):
    """Return the network in eval mode, with no layer that is zero."""
    torch.manual_seed(0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net.eval()


class Times64(torch.nn.Module):
    """The features of time in float64; diffusers' own are float32 whatever the network is."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, t):
        return timestep_embedding(t.double(), self.dim)


def outputs(adm, model):
    """Return what both networks say to the same images at three times, in adm's precision."""
    torch.manual_seed(1)
    config, dtype = adm.config, next(adm.parameters()).dtype
    x = torch.randn(3, config.in_channels, config.image_size, config.image_size, dtype=dtype)
    y = None if config.num_classes is None else torch.tensor([0, 4, 2])
    if dtype == torch.float64:
        model.time_proj = Times64(config.num_channels)
    with torch.no_grad():
        return adm(x, TIMES, y), model(x, TIMES, y).sample


def agree(adm, model, *, tolerance=1e-13):
    expected, found = outputs(adm, model)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    # Networks that say nothing would agree as well.
    assert expected.std() > 0.01


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# In float64, a few dozen layers round by 2e-15 at most here; diffusers sums attention in another
# order.
@pytest.mark.parametrize("changes", AGREEING, ids=str)
def test_an_exported_network_computes_the_same(changes):
    adm = randomised(ADMUNet(small(**changes)).double())

    agree(adm, to_diffusers(adm))


@pytest.mark.parametrize("changes", AGREEING, ids=str)
def test_the_way_there_and_back_keeps_every_weight_and_the_function(changes):
    adm = randomised(ADMUNet(small(**changes)))

    back = from_diffusers(to_diffusers(adm))

    assert same_weights(back, adm)
    x, t = torch.randn(2, 2, 8, 8), TIMES[:2]
    y = () if "num_classes" not in changes else (torch.tensor([0, 4]),)
    assert torch.equal(back(x, t, *y), adm(x, t, *y))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_head_dim": None},
        {"attention_head_dim": 64},  # more than the first level is wide, where no attention is
        {"attn_norm_num_groups": 32, "resnet_time_scale_shift": "scale_shift"},
        {"act_fn": "swish", "time_embedding_dim": 128, "layers_per_block": 2},
        {"downsample_type": "resnet", "upsample_type": "resnet",
         "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
         "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        # The blocks at either end do not resample, so that their types may say anything.
        {"down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D"),
         "up_block_types": ("UpBlock2D", "AttnUpBlock2D")},
        {"block_out_channels": (32, 64, 32), "sample_size": (8, 8),
         "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")},
        {"num_class_embeds": 5, "out_channels": 4},
    ],
    ids=str,
)  # fmt: skip
def test_a_network_that_was_made_by_diffusers_computes_the_same_as_adms(changes):
    model = theirs(**changes).double()

    adm = from_diffusers(model)

    agree(adm, model)


def test_the_features_of_time_are_theirs_too():
    adm = randomised(ADMUNet(small()))

    # Float32: an angle of 999 is known to 6e-5, and both compute it alike.
    agree(adm, to_diffusers(adm), tolerance=1e-5)


def test_the_shipped_model_computes_the_same_in_diffusers_and_comes_back():
    adm = load_dm("MNIST32-small").unet

    model = to_diffusers(adm)

    agree(adm, model, tolerance=1e-5)  # float32, as above
    assert same_weights(from_diffusers(model), adm)
    assert from_diffusers(model).config == adm.config
    agree(adm.double(), to_diffusers(adm))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_precision_and_mode_are_those_of_the_network_it_was(dtype):
    adm = ADMUNet(small()).to(dtype).train()

    model = to_diffusers(adm)
    back = from_diffusers(model.eval())

    assert {p.dtype for net in (model, back) for p in net.parameters()} == {dtype}
    assert to_diffusers(adm).training
    assert not back.training


def test_the_copies_share_no_memory_with_the_network():
    adm = randomised(ADMUNet(small()))
    model = to_diffusers(adm)
    back = from_diffusers(model)
    before = [p.clone() for p in back.parameters()]

    for p in adm.parameters():
        p.data.zero_()
    assert all(p.any() for p in model.parameters())
    for p in model.parameters():
        p.data.zero_()
    assert all(map(torch.equal, back.parameters(), before))
    assert all(p.requires_grad for net in (model, back) for p in net.parameters())


def test_the_order_of_channels_survives_a_save_by_diffusers(tmp_path):
    adm = randomised(ADMUNet(small(num_heads=4, attention_order="legacy")))
    to_diffusers(adm).save_pretrained(tmp_path)

    back = from_diffusers(UNet2DModel.from_pretrained(tmp_path))

    assert back.config.attention_order == "legacy"
    assert same_weights(back, adm)


def test_dropout_falls_on_the_same_places():
    adm = randomised(ADMUNet(small(dropout=0.5, resblock_updown=True))).double()

    model = to_diffusers(adm)

    drops = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p]
    assert len(drops) == len([m for m in adm.modules() if isinstance(m, torch.nn.Dropout)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_mult": (2, 2)}, r"`channel_mult` begins with 2, expected 1"),
        (
            {"attention_resolutions": (8, 4), "num_heads": 4},
            r"`num_heads` is 4 at \[32, 64\] channels.*`num_head_channels`",
        ),
    ],
    ids=str,
)
def test_an_adm_network_without_a_counterpart_is_refused_by_its_field(changes, message):
    with pytest.raises(ValueError, match=message):
        to_diffusers(ADMUNet(small(**changes)))


def test_the_rows_of_table_3_can_go_where_their_heads_have_one_size():
    refused = set()
    for name, config in TABLE_3.items():
        try:
            diffusers_config(config)
        except ValueError:
            refused.add(name)

    assert refused == {"Anime64", "CelebAHQ128", "AFHQ128"}
    for name in refused:
        diffusers_config(replace(TABLE_3[name], num_head_channels=64))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time_embedding_type", "fourier"),
        ("time_embedding_dim", 32),
        ("flip_sin_to_cos", False),
        ("freq_shift", 1),
        ("norm_num_groups", 16),
        ("norm_eps", 1e-6),
        ("attn_norm_num_groups", 16),
        ("act_fn", "gelu"),
        ("mid_block_type", None),
        ("add_attention", False),
        ("mid_block_scale_factor", 2),
        ("downsample_padding", 0),
        ("center_input_sample", True),
        ("class_embed_type", "timestep"),
        ("resnet_time_scale_shift", "spatial"),
        ("out_channels", 3),
        ("sample_size", None),
        ("sample_size", (8, 16)),
        ("sample_size", 9),
        ("attention_head_dim", 48),
        ("attention_head_dim", 128),
        ("down_block_types", ("DownBlock2D", "SkipDownBlock2D")),
        ("up_block_types", ("AttnSkipUpBlock2D", "UpBlock2D")),
        ("up_block_types", ("UpBlock2D", "UpBlock2D")),
        ("down_block_types", ("ResnetDownsampleBlock2D", "AttnDownBlock2D")),
    ],
    ids=str,
)
def test_a_diffusers_network_without_a_counterpart_is_refused_by_field_and_value(field, value):
    config = {**theirs().config, field: value}

    with pytest.raises(ValueError, match=r"expected .*no ADM UNet computes the same") as refused:
        adm_config(config)

    message = str(refused.value)
    assert f"`{'downsample_type' if 'Resnet' in str(value) else field}`" in message
    assert repr(value) in message


def test_a_middle_without_its_norm_is_refused():
    # diffusers' default under scale_shift: the middle's attention then has no norm before it.
    model = theirs(resnet_time_scale_shift="scale_shift")
    assert model.mid_block.attentions[0].group_norm is None

    with pytest.raises(ValueError, match=r"`attn_norm_num_groups`.* is None, expected 32"):
        from_diffusers(model)


def test_channels_per_head_that_fit_the_attention_and_no_adm_config_are_refused():
    widths = (32, 64, 128)
    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
             "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")}  # fmt: skip

    with pytest.raises(ValueError, match=r"`attention_head_dim`.* 64, expected a divisor"):
        from_diffusers(theirs(block_out_channels=widths, attention_head_dim=64, **kinds))


def test_weights_beyond_the_config_are_named():
    model = theirs()
    model.mid_block.attentions[0].fuse_projections()

    with pytest.raises(ValueError, match=r"mid_block\.attentions\.0\.to_qkv.*unfuse"):
        from_diffusers(model)


def test_another_network_of_diffusers_is_refused_by_its_class():
    model = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1, cross_attention_dim=8,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip

    with pytest.raises(ValueError, match="UNet2DConditionModel, expected a UNet2DModel"):
        from_diffusers(model)


def test_a_missing_diffusers_names_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)

    with pytest.raises(ImportError, match=r"pip install 'chainograd\[diffusers\]'"):
        to_diffusers(ADMUNet(small()))


def test_a_network_of_diffusers_is_a_backbone_of_discovery():
    unet = from_diffusers(theirs()).requires_grad_(False)
    dm = DiffusionModel(unet, NoiseSchedule.linear(), "theirs")
    config = DiscoveryConfig.of(K=3, S=2.0, M=2, batch_size=4, head_std=0.1,
                             reconstructor="difference")  # fmt: skip
    networks = RunNetworks.build(config, dm)
    before = {key: value.clone() for key, value in networks.shift_block.state_dict().items()}

    record = Trainer(networks).step(*networks.draw(4))

    assert torch.isfinite(torch.tensor([record["L_G"], record["shift_error"]])).all()
    after = networks.shift_block.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in after)
    assert asdict(unet.config)["num_head_channels"] == 16
