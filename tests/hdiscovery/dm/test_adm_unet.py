"""ADM's UNet: its layers, its split at h-space and its config, each against its formula."""

import pytest
import torch
from diffusers.models.embeddings import Timesteps
from hdiscovery.dm.adm_blocks import AttentionBlock, ResBlock, timestep_embedding
from hdiscovery.dm.adm_config import TABLE_3, UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet, Encoded
from hdiscovery.networks.discriminator import Discriminator


def randomised(config):
    """Return a float64 UNet in which no layer is zero."""
    torch.manual_seed(0)
    unet = ADMUNet(config).double()
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return unet


def tiny(**changes):
    fields = {"image_size": 8, "in_channels": 2, "num_channels": 32, "channel_mult": (1, 2),
              "num_res_blocks": 1, **changes}  # fmt: skip
    return UNetConfig(**fields)


def images(n=2, channels=2):
    return torch.randn(n, channels, 8, 8, dtype=torch.float64)


TIMES = torch.tensor([3, 700])


def named_shapes(block, a, b, *, emb=128, scale_shift=True):
    """Return ADM's names and shapes of a residual block from a to b channels."""
    shapes = {
        "in_layers.0": (a,), "in_layers.2": (b, a, 3, 3),
        "emb_layers.1": (2 * b if scale_shift else b, emb),
        "out_layers.0": (b,), "out_layers.3": (b, b, 3, 3),
    }  # fmt: skip
    if a != b:
        shapes["skip_connection"] = (b, a, 1, 1)
    return {f"{block}.{name}": shape for name, shape in shapes.items()}


def test_a_state_dict_with_adms_names_and_shapes_loads_strictly():
    config = tiny(attention_resolutions=(4,), resblock_updown=True)
    weights = {
        "time_embed.0": (128, 32), "time_embed.2": (128, 128),
        "input_blocks.0.0": (32, 2, 3, 3), "out.0": (32,), "out.2": (2, 32, 3, 3),
    }  # fmt: skip
    for block, a, b in (
        ("input_blocks.1.0", 32, 32), ("input_blocks.2.0", 32, 32), ("input_blocks.3.0", 32, 64),
        ("middle_block.0", 64, 64), ("middle_block.2", 64, 64),
        ("output_blocks.0.0", 128, 64), ("output_blocks.1.0", 96, 64),
        ("output_blocks.1.2", 64, 64), ("output_blocks.2.0", 96, 32),
        ("output_blocks.3.0", 64, 32),
    ):  # fmt: skip
        weights |= named_shapes(block, a, b)
    for block in ("input_blocks.3.1", "middle_block.1", "output_blocks.0.1", "output_blocks.1.1"):
        weights |= {f"{block}.norm": (64,), f"{block}.qkv": (192, 64, 1),
                    f"{block}.proj_out": (64, 64, 1)}  # fmt: skip
    state = {f"{name}.weight": torch.randn(shape) for name, shape in weights.items()}
    state |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in weights.items()}

    unet = ADMUNet(config)
    unet.load_state_dict(state)

    assert set(unet.state_dict()) == set(state)


@pytest.mark.parametrize("edge", [64, 128])
def test_attention_resolutions_are_pixels(edge):
    row = {64: "Anime64", 128: "CelebAHQ128"}[edge]
    with torch.device("meta"):
        unet = ADMUNet(TABLE_3[row])

    levels_down = {64: 2, 128: 3}[edge]  # 64 / 4 = 128 / 8 = 16
    with_attention = [
        name for name, module in unet.input_blocks.named_modules()
        if isinstance(module, AttentionBlock)
    ]  # fmt: skip
    # A level is two blocks and the way down, after the first convolution.
    first = 1 + 3 * levels_down
    assert with_attention == [f"{first}.1", f"{first + 1}.1"]


def test_the_middle_has_attention_where_no_resolution_does():
    unet = ADMUNet(tiny(attention_resolutions=()))

    found = [name for name, m in unet.named_modules() if isinstance(m, AttentionBlock)]

    assert found == ["middle_block.1"]


@pytest.mark.parametrize("changes", [{}, {"learn_sigma": True}, {"num_classes": 5}], ids=str)
def test_the_three_parts_in_a_row_are_the_network(changes):
    unet = randomised(tiny(**changes))
    x, y = images(), (torch.tensor([0, 4]),) if "num_classes" in changes else ()

    encoded = unet.encode(x, TIMES, *y)
    h = unet.middle(encoded)

    assert h.shape[1:] == unet.config.h_shape
    assert torch.equal(unet.decode(h, encoded), unet(x, TIMES, *y))
    assert unet(x, TIMES, *y).shape[1] == (4 if "learn_sigma" in changes else 2)


def test_h_and_shifted_h_decoded_in_one_batch_are_the_two_passes():
    unet = randomised(tiny())
    encoded = unet.encode(images(), TIMES)
    h = unet.middle(encoded)
    shifted = h + torch.randn_like(h)
    twice = Encoded(
        encoded.features,
        tuple(torch.cat([skip, skip]) for skip in encoded.skips),
        torch.cat([encoded.embedding, encoded.embedding]),
    )

    both = unet.decode(torch.cat([h, shifted]), twice)

    one_by_one = torch.cat([unet.decode(h, encoded), unet.decode(shifted, encoded)])
    torch.testing.assert_close(both, one_by_one, rtol=1e-10, atol=1e-10)


def test_the_last_skip_is_the_encoders_end_and_is_not_shifted():
    unet = randomised(tiny())

    encoded = unet.encode(images(), TIMES)

    assert encoded.skips[-1] is encoded.features


def test_every_decoder_block_gets_the_skip_of_its_mirror_image():
    unet = randomised(tiny())
    encoded = unet.encode(images(), TIMES)
    entered = []
    for stage in unet.output_blocks:
        stage.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))

    unet.decode(unet.middle(encoded), encoded)

    for x, skip in zip(entered, reversed(encoded.skips), strict=True):
        assert torch.equal(x[:, -skip.shape[1] :], skip)


def test_the_attention_orders_share_their_keys_and_not_their_results():
    legacy = randomised(tiny(num_heads=4, attention_order="legacy"))
    new = randomised(tiny(num_heads=4, attention_order="new"))
    new.load_state_dict(legacy.state_dict())
    x = images()

    difference = (legacy(x, TIMES) - new(x, TIMES)).abs().max()

    assert difference > 1e-3


def test_one_head_makes_the_orders_the_same():
    legacy, new = (randomised(tiny(attention_order=order)) for order in ("legacy", "new"))
    x = images()

    assert torch.equal(legacy(x, TIMES), new(x, TIMES))


def test_channels_per_head_take_precedence_over_the_number_of_heads():
    config = tiny(num_heads=1, num_head_channels=16)

    assert AttentionBlock(64, config).num_heads == 4


@pytest.mark.parametrize("scale_shift", [True, False])
def test_a_residual_block_is_its_formula(scale_shift):
    torch.manual_seed(0)
    block = ResBlock(32, 64, tiny(use_scale_shift_norm=scale_shift)).double()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, emb = torch.randn(2, 32, 4, 4).double(), torch.randn(2, 128).double()
    silu = torch.nn.functional.silu

    h = block.in_layers[2](silu(block.in_layers[0](x)))
    modulation = block.emb_layers[1](silu(emb))[..., None, None]
    norm, conv = block.out_layers[0], block.out_layers[3]
    if scale_shift:
        h = norm(h) * (1 + modulation[:, :64]) + modulation[:, 64:]
    else:
        h = norm(h + modulation)
    expected = block.skip_connection(x) + conv(silu(h))

    torch.testing.assert_close(block(x, emb), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("resample", "edge"), [("up", 8), ("down", 2)])
def test_a_resampling_block_changes_both_of_its_paths(resample, edge):
    block = ResBlock(32, 32, tiny(), resample=resample)
    x = torch.randn(2, 32, 4, 4)

    y = block(x, torch.randn(2, 128))

    # Its last convolution is zero at the start, so what comes out is the other path.
    assert y.shape == (2, 32, edge, edge)
    if resample == "up":
        assert torch.equal(y[..., ::2, ::2], x)
        assert torch.equal(y[..., 1::2, 1::2], x)
    else:
        torch.testing.assert_close(y, x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)))


def test_a_new_network_predicts_no_noise():
    assert not ADMUNet(tiny())(images().float(), TIMES).any()


def test_the_time_embedding_is_that_of_diffusers():
    t = torch.tensor([0, 1, 500, 999])

    theirs = Timesteps(32, flip_sin_to_cos=True, downscale_freq_shift=0)(t)

    torch.testing.assert_close(timestep_embedding(t.float(), 32), theirs, rtol=0, atol=1e-6)


def test_the_time_embedding_is_cosines_then_sines_of_falling_frequency():
    t = torch.tensor([0.0, 7.0], dtype=torch.float64)

    features = timestep_embedding(t, 4)

    angles = 7 * torch.tensor([1.0, 10_000.0**-0.5], dtype=torch.float64)
    torch.testing.assert_close(features[1], torch.cat([angles.cos(), angles.sin()]))
    assert features[0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_the_gradient_through_a_frozen_network_is_that_of_finite_differences(order):
    unet = randomised(tiny(in_channels=1, channel_mult=(1,), num_heads=4, attention_order=order))
    unet.requires_grad_(False).eval()
    x, v = torch.randn(2, 1, 1, 8, 8, dtype=torch.float64).unbind()
    a = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def along(a):
        return unet(x + a * v, TIMES[:1]).square().mean()

    (gradient,) = torch.autograd.grad(along(a), a)

    assert torch.autograd.gradcheck(along, (a,))
    assert gradient.abs() > 1e-6
    assert all(p.grad is None for p in unet.parameters())


def test_dropout_sleeps_in_eval_mode_and_only_there():
    unet = randomised(tiny(dropout=0.5))
    x = images()

    assert torch.equal(unet.eval()(x, TIMES), unet(x, TIMES))
    assert not torch.equal(unet.train()(x, TIMES), unet(x, TIMES))


@pytest.mark.parametrize("num_classes", [None, 5])
def test_classes_are_given_to_class_conditional_models_and_to_no_other(num_classes):
    unet = ADMUNet(tiny(num_classes=num_classes))
    y = torch.tensor([0, 1]) if num_classes is None else None

    with pytest.raises(ValueError, match="class-conditional"):
        unet(images().float(), TIMES, y)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_channels": 48}, "multiple of 32"),
        ({"channel_mult": (0.5, 1)}, "multiple of 32"),
        ({"num_heads": 3}, "`num_heads` 3"),
        ({"num_head_channels": 24}, "`num_head_channels` 24"),
        ({"image_size": 9}, "cannot be halved 1 times"),
    ],
    ids=str,
)
def test_a_config_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def millions(*modules):
    return sum(p.numel() for m in modules for p in m.parameters()) / 1e6


@pytest.mark.parametrize(
    ("row", "whole", "encoder", "decoder", "h"),
    [
        ("MNIST32", 19.40, 7.76, 11.64, (256, 4, 4)),
        ("Anime64", 63.96, 25.57, 38.39, (512, 8, 8)),
        ("CelebAHQ128", 98.62, 38.60, 60.02, (512, 8, 8)),
        ("AFHQ128", 98.62, 38.60, 60.02, (512, 8, 8)),
    ],
)
def test_the_rows_of_table_3_have_adms_sizes(row, whole, encoder, decoder, h):
    with torch.device("meta"):
        unet, D = ADMUNet(TABLE_3[row]), Discriminator(TABLE_3[row])

    assert millions(unet) == pytest.approx(whole, abs=0.006)
    parts = (unet.time_embed, unet.input_blocks, unet.middle_block)
    assert millions(*parts) == pytest.approx(encoder, abs=0.006)
    assert millions(unet.output_blocks, unet.out) == pytest.approx(decoder, abs=0.006)
    assert millions(D) == pytest.approx(encoder, abs=0.006)
    assert unet.config.h_shape == h
    if row == "MNIST32":
        assert len(unet.state_dict()) == 324


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_attention_is_softmax_attention_in_the_channel_order_of_its_name(order):
    torch.manual_seed(0)
    C, heads = 64, 4
    config = UNetConfig(image_size=8, num_channels=64, num_heads=heads, attention_order=order)
    block = AttentionBlock(C, config).double()
    torch.nn.init.normal_(block.proj_out.weight)
    x = torch.randn(2, C, 3, 3, dtype=torch.float64)

    flat = x.flatten(2)
    qkv = block.qkv(block.norm(flat))
    ch = C // heads
    rows = []
    for head in range(heads):
        if order == "legacy":
            q, k, v = qkv[:, 3 * ch * head : 3 * ch * (head + 1)].split(ch, dim=1)
        else:
            q, k, v = (qkv[:, C * j + ch * head : C * j + ch * (head + 1)] for j in range(3))
        w = torch.softmax(torch.einsum("nct,ncs->nts", q, k) / ch**0.5, dim=-1)
        rows.append(torch.einsum("nts,ncs->nct", w, v))
    expected = flat + block.proj_out(torch.cat(rows, dim=1))

    torch.testing.assert_close(block(x), expected.view_as(x), rtol=1e-10, atol=1e-10)
