"""Peers' ways within a step: gradients of the plain loop, and work and bytes counted by hand."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import peers_within
from models_of_today import Built, build
from peer_blocks import block_calls, in_segments
from peer_host import Host
from peer_ways import WAYS, prepared
from peers_within import reading

from tests.benchmarks.tiny_models import TINY

HERE = [name for name in WAYS if name not in ("plain", "remat")]
N, LAYERS = 64, 8


class Blocks(nn.Module):
    """Eight square products with a tanh each, whose blocks are called as diffusers' are."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(N, N, bias=False), nn.Tanh()) for _ in range(LAYERS)
        )
        self.call = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func):
        self.call = gradient_checkpointing_func

    def disable_gradient_checkpointing(self):
        self.call = None

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.call is None else self.call(block, x)
        return torch.tanh(x)


def toy():
    net = Blocks().requires_grad_(False)
    return Built(net, torch.randn(N, N), lambda x, i: net(x), (), (), ())


PRODUCT = 2 * N**3
F = B = LAYERS * PRODUCT  # frozen weights: a product has one gradient


@pytest.mark.parametrize(
    ("way", "flops"),
    [
        ("plain", F + B),
        ("step", 2 * F + B),
        ("block", 2 * F + B),
        ("nested", 3 * F + B),
        ("every 2nd", 3 * F // 2 + B),
        ("2 of 4", 3 * F // 2 + B),
        ("segments 2/4", 3 * F // 2 + B),
        ("step, every 2nd", 5 * F // 2 + B),
        ("step, segments 2/4", 5 * F // 2 + B),
        ("block, on host", 2 * F + B),
    ],
)
@pytest.mark.parametrize("M", [2, 3])
def test_the_work_of_a_way_is_that_counted_by_hand(way, flops, M):
    built = toy()

    found = reading(built, WAYS[way], block_calls(built), M)

    assert found.flops == M * flops


def test_each_further_step_keeps_what_can_be_counted_by_hand():
    built = toy()
    state = built.x.numel() * built.x.element_size()

    kept = {w: reading(built, WAYS[w], block_calls(built)).kept_bytes for w in WAYS if w != "remat"}

    assert kept["plain"] == (LAYERS + 1) * state  # each tanh's result; the last is the next state
    assert kept["step"] == state
    assert kept["block"] == LAYERS * state  # seven blocks' inputs, and the next state
    assert kept["block, on host"] <= state


def gradients(built, way):
    leaves = [built.x.detach().requires_grad_(), *built.trained]
    for t in built.trained:
        t.grad = None
    run = prepared(built, WAYS[way], block_calls(built), Host())

    run(leaves[0], 2, lambda: None)

    return [t.grad for t in leaves]


@pytest.mark.parametrize("name", TINY)
def test_a_peers_way_has_the_gradients_of_the_plain_loop(name):
    built = build(TINY[name], "lora", M=2)
    calls = block_calls(built)
    plain = gradients(built, "plain")

    # What waits on the host comes back without its values: only its bytes are counted.
    for way in (w for w in HERE if w != "block, on host" and WAYS[w].fits(calls)):
        found = gradients(built, way)
        assert all(torch.equal(g, h) for g, h in zip(found, plain, strict=True)), way


@pytest.mark.parametrize("name", ["wan", "unet"])
def test_two_steps_tell_of_three_to_the_byte(name):
    built = build(TINY[name], "embedding")
    calls = block_calls(built)

    for way in (WAYS[w] for w in ("plain", *HERE) if WAYS[w].fits(calls)):
        assert reading(built, way, calls, 2).at(3) == reading(built, way, calls, 3), way.name


def test_segments_need_blocks_with_nothing_between_them():
    fits = {name: in_segments(block_calls(build(model, "lora"))) for name, model in TINY.items()}

    assert fits == {"flux": True, "sd3": True, "wan": True, "unet": False}


def test_blocks_checkpointed_keep_more_for_less_work():
    built = build(TINY["wan"], "embedding")
    calls = block_calls(built)

    found = [reading(built, WAYS[w], calls) for w in ("block", "attention kept", "every 2nd")]

    assert all(a.flops > b.flops for a, b in pairwise(found))
    assert all(a.kept_bytes < b.kept_bytes for a, b in pairwise(found))


def test_fakes_need_what_real_tensors_do_and_rows_become_a_table(monkeypatch):
    monkeypatch.setattr(peers_within, "WAYS", {w: WAYS[w] for w in ("plain", "nested")})
    real = build(TINY["wan"], "embedding")
    expected = reading(real, WAYS["nested"], block_calls(real)).at(20)

    rows = peers_within.rows_of(TINY["wan"], "embedding", (20, 50))

    assert [(row["way"], row["M"]) for row in rows] == [
        ("plain", 20), ("plain", 50), ("nested", 20), ("nested", 50),
    ]  # fmt: skip
    assert (rows[2]["flops"], rows[2]["device_bytes"]) == (expected.flops, expected.device_bytes)
    table = peers_within.table(rows)
    assert table.count("\n") == 1 + len(rows)
    assert "| wan | embedding | plain | 20 | 0.00 | 1.000 | 0.00 |" in table


def test_published_readings_name_their_source():
    assert all(p["source"].startswith("SimpleTuner") for p in peers_within.PUBLISHED)
    wan = {p["way"]: p["GiB"] for p in peers_within.PUBLISHED if p["model"].startswith("Wan")}
    assert (wan["none"], wan["layer"], wan["seg2-stride4"]) == (71.90, 4.73, 39.25)
