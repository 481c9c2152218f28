"""Models of diffusers, tiny, whose steps are cut into the blocks that are found."""

import pytest
import torch
from torch import nn

from chainograd import CheckpointedChain
from tests.chainograd.blocks.models import CONFIGS
from tests.problems import plain

diffusers = pytest.importorskip("diffusers")

M = 2


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


def built(name):
    return getattr(diffusers, name)(**CONFIGS[name])


def unet():
    net, c = built("UNet2DConditionModel"), leaf(2, 5, 8)

    def predict(x, i):
        return net(x, torch.tensor(900 - 100 * i), encoder_hidden_states=c).sample

    return net, (2, 4, 8, 8), predict, (c,)


def controlled_unet():
    net, control, c = built("UNet2DConditionModel"), built("ControlNetModel"), leaf(2, 5, 8)
    for p in control.parameters():
        nn.init.normal_(p, std=0.1)
    image = torch.randn(2, 3, 16, 16)

    def predict(x, i):
        t = torch.tensor(900 - 100 * i)
        down, mid = control(x, t, c, controlnet_cond=image, return_dict=False)
        return net(
            x, t, c, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample

    return nn.ModuleList([net, control]), (2, 4, 8, 8), predict, (c,)


def flux():
    net, c, pooled = built("FluxTransformer2DModel"), leaf(2, 5, 8), leaf(2, 8)

    def predict(x, i):
        t = torch.full((2,), 0.9 - 0.1 * i)
        ids = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}
        return net(x, c, pooled, t, joint_attention_kwargs={}, **ids).sample

    return net, (2, 16, 4), predict, (c, pooled)


def sd3():
    net, c, pooled = built("SD3Transformer2DModel"), leaf(2, 5, 8), leaf(2, 8)

    def predict(x, i):
        return net(x, c, pooled, torch.full((2,), 900.0 - 100 * i)).sample

    return net, (2, 4, 8, 8), predict, (c, pooled)


def wan():
    net, c = built("WanTransformer3DModel"), leaf(1, 5, 8)

    def predict(x, i):
        return net(x, torch.full((1,), 900 - 100 * i), c).sample

    return net, (1, 4, 2, 8, 8), predict, (c,)


def qwen():
    net, c = built("QwenImageTransformer2DModel"), leaf(1, 5, 8)

    def predict(x, i):
        mask, t = torch.ones(1, 5, dtype=torch.bool), torch.full((1,), 0.9 - 0.1 * i)
        return net(x, c, mask, t, img_shapes=[[(1, 4, 4)]]).sample

    return net, (1, 16, 4), predict, (c,)


@pytest.mark.parametrize("plan", ["skeleton", "blocks+attention"])
@pytest.mark.parametrize("make", [unet, controlled_unet, flux, sd3, wan, qwen])
def test_a_model_that_is_cut_has_the_gradients_of_the_plain_loop(make, plan, tmp_path):
    net, shape, predict, conditions = make()
    x = leaf(*shape)

    assert_cut_as_the_loop(predict, x, (x, *conditions, *net.parameters()), plan, tmp_path)


@pytest.mark.parametrize("plan", ["skeleton", "blocks+attention", "nodes+attention"])
@pytest.mark.parametrize("make", [unet, flux, wan])
def test_adapters_inside_blocks_have_the_gradients_of_the_plain_loop(make, plan, tmp_path):
    peft = pytest.importorskip("peft")
    net, shape, predict, _ = make()
    net.requires_grad_(False)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, net)
    adapters = [p for p in net.parameters() if p.requires_grad]
    x = leaf(*shape)

    assert adapters
    assert_cut_as_the_loop(predict, x, (x, *adapters), plan, tmp_path)


def test_a_model_of_transformers_is_cut_into_its_layers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    net = transformers.LlamaModel(config).requires_grad_(False)
    x = leaf(2, 6, 16)

    def predict(x, i):
        return net(inputs_embeds=x, use_cache=False).last_hidden_state

    assert "2 LlamaDecoderLayer" in str(CheckpointedChain(predict, M))
    assert_cut_as_the_loop(predict, x, (x,), "skeleton", tmp_path)


def assert_cut_as_the_loop(predict, x, inputs, plan, store):
    def step(x, i):
        return x - 0.3 * predict(x, i)

    def gradients(run):
        return torch.autograd.grad(run(x).square().sum(), inputs, allow_unused=True)

    expected = gradients(lambda x: plain(step, M, x))
    got = gradients(CheckpointedChain(step, M, plan=plan, store=store))

    assert all(e is None or torch.equal(g, e) for g, e in zip(got, expected, strict=True))
    assert expected[0].abs().max() > 0
