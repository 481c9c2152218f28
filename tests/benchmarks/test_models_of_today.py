"""Models of today: guessed inputs, both trainings, facts of a step, a model of one's own."""

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import models_of_today
from forward_inputs import Of, Size, full_config, inputs
from models_of_today import build, facts_of
from published_models import MODELS, Model, named
from working import working

from chainograd.tensors.flops import FORMULAS
from tests.benchmarks.tiny_models import TINY


@pytest.mark.parametrize("name", MODELS)
def test_the_inputs_of_every_published_model_are_guessed(name):
    model = MODELS[name]
    cls = named(model.cls)

    found = inputs(cls, full_config(cls, model.config), model.size)

    assert found["encoder_hidden_states"].shape[:2] == (1, model.size.text_tokens)
    assert set(model.config) <= set(full_config(cls, {}))


def test_a_flux_of_1024_pixels_has_the_inputs_of_its_pipeline():
    model = MODELS["FLUX.1-dev"]

    found = inputs(FluxTransformer2DModel, full_config(FluxTransformer2DModel, model.config),
                   model.size)  # fmt: skip

    assert found == {
        "encoder_hidden_states": Of((1, 512, 4096)),
        "pooled_projections": Of((1, 768)),
        "img_ids": Of((4096, 3)),
        "txt_ids": Of((512, 3)),
        "guidance": Of((1,), torch.float32),
    }


def test_inputs_in_a_dictionary_are_guessed_too():
    sdxl = MODELS["SDXL"]

    found = inputs(UNet2DConditionModel, full_config(UNet2DConditionModel, sdxl.config), sdxl.size)

    assert found["added_cond_kwargs"] == {"text_embeds": Of((1, 1280)), "time_ids": Of((1, 6))}


class Unheard(torch.nn.Module):
    def forward(self, hidden_states, timestep, melody, return_dict=True):
        return (hidden_states * melody,)


def test_an_unknown_input_is_refused_with_the_way_out_and_may_be_described():
    size = Size((1, 4))
    described = Size((1, 4), others={"melody": Of((1, 4))})

    with pytest.raises(ValueError, match=r"requires `melody`.*--input melody=1,256:bfloat16"):
        inputs(Unheard, {}, size)
    assert inputs(Unheard, {}, described) == {"melody": Of((1, 4))}


@pytest.mark.parametrize(
    ("name", "size", "way_out"),
    [
        ("Qwen-Image", Size((1, 6889, 64), 512), "--grid"),
        ("FLUX.1-dev", Size((1, 4096, 64)), "--text-tokens"),
    ],
)
def test_a_size_that_cannot_be_guessed_is_asked_for(name, size, way_out):
    cls = named(MODELS[name].cls)

    with pytest.raises(ValueError, match=way_out):
        inputs(cls, full_config(cls, MODELS[name].config), size)


@pytest.mark.parametrize("training", ["lora", "embedding"])
@pytest.mark.parametrize("name", TINY)
def test_what_is_trained_has_a_gradient_and_the_weights_have_none(name, training):
    built = build(TINY[name], training, M=2)

    built.step(built.step(built.x, 0, *built.conditions), 1, *built.conditions).sum().backward()

    assert len(built.trained) == 1 or training == "lora"
    gradients = [t.grad for t in built.trained]
    assert all(g is not None for g in gradients)
    # The last block of SD3 asks a question of its text whose answer it does not use.
    assert sum(bool(g.any()) for g in gradients) >= 0.9 * len(gradients)
    trained = {id(t) for t in built.trained}
    assert all(p.grad is None for p in built.net.parameters() if id(p) not in trained)


def test_weights_are_in_bfloat16_but_for_those_that_diffusers_keeps():
    net = build(TINY["wan"], "embedding").net

    kept = {n for n, p in net.named_parameters() if p.dtype == torch.float32}
    assert net.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert any("scale_shift_table" in n for n in kept)


def test_a_noise_step_with_the_true_noise_ends_at_the_clean_state():
    x_0, noise = torch.randn(2, 8, dtype=torch.float64)
    u = 0.49 * torch.pi
    x = torch.cos(torch.tensor(u)) * x_0 + torch.sin(torch.tensor(u)) * noise

    assert torch.allclose(models_of_today.moved(x, noise, 0, 1, "noise"), x_0, atol=1e-6)


def test_attention_on_a_cpu_is_counted_as_that_of_cuda_is():
    q, k, v = (torch.randn(2, 3, n, 16, requires_grad=True) for n in (8, 12, 12))
    aten = torch.ops.aten

    with working(FORMULAS) as work:
        out = F.scaled_dot_product_attention(q, k, v)
        forward = work.flops
        out.sum().backward()

    forth = aten._scaled_dot_product_flash_attention_for_cpu
    back = aten._scaled_dot_product_flash_attention_for_cpu_backward
    assert forward == 2 * (2 * 2 * 3 * 8 * 12 * 16) == sdpa_flop_count(q.shape, k.shape, v.shape)
    assert work.by_operation[forth] == forward
    assert work.by_operation[back] == sdpa_backward_flop_count(out.shape, q.shape, k.shape, v.shape)
    assert not {forth, back} & set(flop_registry)  # else the two formulas here are torch's now


@pytest.mark.parametrize(("name", "calls"), [("flux", 5), ("wan", 4)])
def test_the_facts_of_a_step_add_up(name, calls):
    facts = facts_of(TINY[name])

    assert facts["blocks"] == calls
    assert 0 < facts["attention_share"] < 1
    assert facts["backward_flops"] > facts["forward_flops"] > 0
    parts = facts["outside_bytes"] + calls * facts["largest_block_bytes"]
    assert facts["largest_block_bytes"] < facts["graph_bytes"] < parts
    assert facts["attention_bytes"] < facts["graph_bytes"]


def test_a_model_of_ones_own_is_described_on_the_command_line(tmp_path, monkeypatch, capsys):
    config = {"_class_name": "PixArtTransformer2DModel", "num_layers": 2, "sample_size": 8,
              "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16,
              "caption_channels": 24}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "argv", [
        "models_of_today.py", "facts", "--model", f"diffusers:{PixArtTransformer2DModel.__name__}",
        "--config", str(tmp_path / "config.json"), "--state", "1,4,8,8", "--text-tokens", "7",
        "--out", str(tmp_path / "facts.json"),
    ])  # fmt: skip

    models_of_today.main()

    assert "| PixArtTransformer2DModel | 1x4x8x8 | embedding |" in capsys.readouterr().out
    row = json.loads((tmp_path / "facts.json").read_text())["facts"][0]
    assert row["blocks"] == 2


def test_every_published_model_says_where_its_config_is_from():
    assert all(m.source.startswith("https://") and m.resolution for m in MODELS.values())
    assert all(isinstance(m, Model) for m in MODELS.values())
