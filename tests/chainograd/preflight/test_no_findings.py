"""Correct steps have no findings: libraries, checkpointing, attention, diffusers."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from chainograd import CheckpointedChain, ScaledInput
from tests.chainograd.preflight.provoked import M, kinds, only, squares


def test_gradient_checkpointing_inside_a_step_is_no_finding(net):
    def step(x, i):
        return checkpoint(lambda x: net(x, i), x, use_reentrant=False)

    assert kinds(step) == []


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointing_that_no_gradient_can_be_asked_through_is_refused(net):
    def step(x, i):
        return checkpoint(lambda x: net(x, i), x, use_reentrant=True)

    finding = only(step, torch.randn(4, 8, requires_grad=True))

    assert finding.kind == "refused"
    assert "use_reentrant=False" in finding.text


def test_a_chain_inside_a_step_is_no_finding(net):
    inner = CheckpointedChain(net, 2)

    assert kinds(lambda x, i: torch.tanh(inner(x))) == []


def test_a_custom_autograd_function_is_no_finding():
    w = torch.ones(8, requires_grad=True)

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.detach() * 2

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    assert kinds(lambda x, i: torch.tanh(Twice.apply(w * x).add_(1))) == []


def test_an_attention_block_is_no_finding():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train()
    layer.dropout.p = layer.dropout1.p = layer.dropout2.p = layer.self_attn.dropout = 0.0

    assert kinds(lambda x, i: layer(x), torch.randn(2, 4, 8)) == []


def test_a_gradient_that_a_library_stops_by_design_is_no_finding(net):
    stopped = ScaledInput(net, scale=0)

    assert kinds(lambda x, i: 0.9 * x + stopped(x, i)) == []


def test_a_library_of_torch_that_turns_gradients_off_in_part_is_no_finding():
    layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(8, 8))

    # It moves its estimate at every run, which a chain refuses; its own no_grad is not reported.
    assert kinds(lambda x, i: torch.tanh(layer(x))) == ["not repeatable"]
    layer.eval()
    assert kinds(lambda x, i: torch.tanh(layer(x))) == []


def test_kernels_that_differ_with_and_without_gradients_are_those_of_the_plain_loop():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()

    assert kinds(lambda x, i: layer(x), torch.randn(2, 4, 8)) == []


def test_a_diffusers_unet_and_its_ddim_scheduler_are_no_finding():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(M)

    def step(x, i):
        t = scheduler.timesteps[i]
        return scheduler.step(unet(x, t).sample, t, x).prev_sample

    assert kinds(step, torch.randn(2, 1, 8, 8), loss=squares) == []


def test_features_that_a_hook_keeps_are_no_finding():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))
    net.kept = {}
    net[0].register_forward_hook(lambda module, given, out: net.kept.update(h=out))

    found = CheckpointedChain(lambda x, i: x + net(x), 4).check(torch.ones(2, 3))

    assert not any("kept a tensor" in finding.text for finding in found)
    assert not any(finding.kind == "not exact" for finding in found)
