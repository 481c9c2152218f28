"""All four presets at their full size: shapes are real, numbers are not."""

import pytest
import torch
from hdiscovery.directions.recipe import from_preset
from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.dm.adm_config import TABLE_3
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.training.algorithm1 import Objective, bce
from torch._subclasses.fake_tensor import FakeTensorMode

from chainograd.samplers import NoiseSchedule

PRESETS = {
    "MNIST32-400-20-32-5": ("MNIST32", (256, 4, 4), 19.40),
    "Anime64-400-40-128-2": ("Anime64", (512, 8, 8), 63.96),
    "CelebAHQ128-500-40-256-2": ("CelebAHQ128", (512, 8, 8), 98.62),
    "AFHQ128-400-40-256-2": ("AFHQ128", (512, 8, 8), 98.62),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_makes_a_step_at_full_size(name):
    row, h_shape, millions = PRESETS[name]
    schedule = NoiseSchedule.linear()
    # Two sampling steps, a shifted one and one after t_stop; batch and networks are the paper's.
    config = from_preset(name, dm="fake", M=2, micro_batch=64)
    with FakeTensorMode():
        unet = ADMUNet(TABLE_3[row]).requires_grad_(False).eval()
        assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
        assert unet.h_shape == h_shape
        d = RunNetworks.build(config, DiffusionModel(unet, schedule, row))
        x_T, k, s = d.draw(config.training.batch_size)
        with torch.no_grad():
            x_0 = d.real(x_T)
        shifted = d.shifted(x_T, k, s)
        assert shifted.shape == x_0.shape == (config.training.batch_size, *unet.image_shape)

        (bce(d.D(x_0), 1) + bce(d.D(shifted.detach()), 0)).backward()
        d.D.requires_grad_(False)
        Objective(d)(x_0, shifted, k, s)["loss"].backward()

        for net in (d.shift_block, d.R, d.D):
            assert all(p.grad is not None for p in net.parameters())
        assert d.shift_block.weight.shape == (config.shift.K, h_shape[0], h_shape[0])
