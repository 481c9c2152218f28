"""ADM's architecture: names, sizes, and the split at h-space."""

import pytest
import torch
from hdiscovery.models.adm_unet import TABLE_3, ADMUNet, AttentionBlock, UNetConfig
from hdiscovery.models.discriminator import Discriminator
from hdiscovery.models.reconstructor import build_reconstructor
from hdiscovery.models.shift_block import ShiftBlock


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


def small(**changes):
    torch.manual_seed(0)
    fields = {"image_size": 8, "in_channels": 1, "num_channels": 32, "channel_mult": (1, 2),
              "num_res_blocks": 1, **changes}  # fmt: skip
    unet = ADMUNet(UNetConfig(**fields)).double()
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return unet


def test_the_state_dict_has_adms_names():
    unet = small(resblock_updown=False, use_scale_shift_norm=False)
    names = {key.rsplit(".", 1)[0] for key in unet.state_dict()}

    res = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
    expected = {"time_embed.0", "time_embed.2", "input_blocks.0.0", "input_blocks.2.0.op", "out.0",
                "out.2", "middle_block.1.norm", "middle_block.1.qkv", "middle_block.1.proj_out",
                "output_blocks.1.1.conv", "input_blocks.3.0.skip_connection"}  # fmt: skip
    blocks = [f"input_blocks.{i}.0" for i in (1, 3)] + ["middle_block.0", "middle_block.2"]
    blocks += [f"output_blocks.{i}.0" for i in range(4)]
    expected |= {f"{block}.{part}" for block in blocks for part in res}
    expected |= {f"output_blocks.{i}.0.skip_connection" for i in range(4)}
    assert names == expected


def test_the_forward_pass_is_its_three_parts_and_a_shifted_h_changes_it():
    unet = small()
    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([3, 700])
    encoded = unet.encode(x, t)
    h = unet.middle(encoded)

    assert torch.equal(unet.decode(h, encoded), unet(x, t))
    assert not torch.equal(unet.decode(h + 1, encoded), unet(x, t))


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


def test_gradients_pass_through_a_frozen_network_in_float64():
    unet = small(channel_mult=(1,)).requires_grad_(False).eval()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    a = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    probes = torch.randn(2, 1, 8, 8, dtype=torch.float64)

    assert torch.autograd.gradcheck(
        lambda a: unet(x + (a.view(2, 1, 1, 1) * probes).sum(0), torch.tensor([5])), (a,)
    )


def test_a_zero_shift_block_shifts_nothing_and_only_its_heads_learn():
    block = ShiftBlock(64, 16, 5)
    h, emb, k = torch.randn(4, 64, 2, 2), torch.randn(4, 16), torch.tensor([0, 4, 4, 2])
    dh = block(h, emb, k)
    (dh * torch.randn_like(dh)).sum().backward()

    assert not dh.any()
    assert block.weight.grad[[0, 2, 4]].abs().sum() > 0
    assert not block.weight.grad[[1, 3]].any()
    assert not block.conv_in.weight.grad.any()


def test_each_sample_gets_the_head_of_its_own_direction():
    block = ShiftBlock(64, 16, 5, head_std=1.0).double()
    h, emb = torch.randn(3, 64, 2, 2).double(), torch.randn(3, 16).double()
    k = torch.tensor([4, 1, 4])

    one_by_one = torch.cat([block(h[n : n + 1], emb[n : n + 1], k[n : n + 1]) for n in range(3)])

    torch.testing.assert_close(block(h, emb, k), one_by_one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["lenet", "difference"])
def test_every_parameter_of_a_reconstructor_learns(name):
    R = build_reconstructor(name, channels=1, image_size=32, num_directions=6)
    logits, shift = R(torch.randn(8, 1, 32, 32), torch.randn(8, 1, 32, 32))
    (logits.square().sum() + shift.square().sum()).backward()

    assert (logits.shape, shift.shape) == ((8, 6), (8,))
    assert all(p.grad is not None for p in R.parameters())


def test_lenet_refuses_images_that_are_too_small_with_the_way_out():
    R = build_reconstructor("lenet", channels=1, image_size=28, num_directions=6)

    with pytest.raises(ValueError, match=r"32 pixels.*difference"):
        R(torch.randn(2, 1, 28, 28), torch.randn(2, 1, 28, 28))


def test_an_unknown_reconstructor_says_which_exist():
    with pytest.raises(ValueError, match="lenet, resnet18, difference"):
        build_reconstructor("vgg", channels=1, image_size=32, num_directions=2)
