"""Discovery in diffusers' networks: the same training, the gradients of the plain loop."""

import diffusers
import pytest
import torch
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.dm.diffusers_model import diffusers_model
from hdiscovery.training.trainer import Trainer

LEVELS = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (32, 64),
    "layers_per_block": 1, "norm_num_groups": 8,
}  # fmt: skip
CONFIG = DiscoveryConfig.of(
    K=3, S=2.0, M=4, t_stop=400, batch_size=4, steps=2, head_std=0.1, reconstructor="difference"
)


def unconditional():
    return diffusers.UNet2DModel(
        **LEVELS, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ), None  # fmt: skip


def conditional():
    return diffusers.UNet2DConditionModel(
        **LEVELS, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16,
        attention_head_dim=4,
    ), torch.randn(1, 5, 16, dtype=torch.float64)  # fmt: skip


@pytest.mark.parametrize("make", [unconditional, conditional])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_directions_train_in_it_and_their_gradient_is_the_plain_loops(make, prediction):
    torch.manual_seed(1)
    unet, condition = make()
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.05)
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction)
    dm = diffusers_model(unet.double(), scheduler, condition=condition)
    d = RunNetworks.build(CONFIG, dm)
    for net in (d.shift_block, d.R, d.D):
        net.double()
    x_T, k, s = d.draw(4)
    x_T, s = x_T.double(), s.double()
    phi = list(d.shift_block.parameters())

    x = x_T
    for i in range(CONFIG.sampling.M):
        x = d.shifted.step(x, i, k, s)
    plain = torch.autograd.grad(x.square().sum(), phi)
    through = torch.autograd.grad(d.shifted(x_T, k, s).square().sum(), phi)
    before = [p.detach().clone() for p in phi]
    record = Trainer(d).step(x_T, k, s)

    for a, b in zip(through, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert max(g.abs().max() for g in plain) > 1e-6
    assert not all(map(torch.equal, before, phi))
    assert record["L_D"] == pytest.approx(2 * 0.6931, abs=1e-3)
    assert all(p.grad is None for p in unet.parameters())
