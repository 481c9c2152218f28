"""Strengths of equal change."""

import pytest
import torch
from hdiscovery.directions.fixed import GlobalDirections
from hdiscovery.dm.walk import draw_noise
from hdiscovery.editing.calibration import calibrate
from hdiscovery.editing.distance import Encoder, Pixels, build_features, distance
from hdiscovery.editing.editor import edit
from hdiscovery.editing.inversion import generate


def test_calibrated_strength_1_is_the_same_change_along_every_direction(gaussian, source_of):
    dm, _ = gaussian
    sizes = torch.tensor([0.5, 1.0, 2.0])
    D = 1e-3 * sizes[:, None, None, None] * torch.ones(3, 1, 2, 2)
    source = source_of(dm, GlobalDirections(D), K=3)
    x_T = draw_noise(dm, 4, 0)

    calibration = calibrate(source, Pixels(), x_T)

    scales = torch.tensor([scale or 0.0 for scale in calibration.scales])
    assert scales[1] == pytest.approx(1.0)  # the median direction at S / 2
    x_0 = generate(dm, x_T, num_steps=4)
    changes = [
        distance(Pixels(), x_0, edit(source, x_T, [k], s[None, None], num_steps=4)[:, 0]).mean()
        for k, s in enumerate(scales)
    ]
    assert torch.stack(changes).tolist() == pytest.approx([calibration.target] * 3, rel=0.02)
    assert calibration.target > 1e-4
    assert calibration.samples == 4


def test_a_direction_that_does_too_little_has_no_calibrated_strength(gaussian, source_of):
    D = torch.tensor([0.0, 1e-4, 1.1e-4])[:, None, None, None] * torch.ones(3, 1, 2, 2)
    dm, _ = gaussian
    source = source_of(dm, GlobalDirections(D), K=3)

    assert calibrate(source, Pixels(), draw_noise(dm, 2, 0)).scales[0] is None


def test_distance_is_of_the_pictures_that_one_sees():
    white = torch.ones(1, 1, 2, 2)

    assert distance(Pixels(), white, white + 3).item() == 0
    assert distance(Pixels(), white, white - 0.5).item() == pytest.approx(0.5)


def test_encoder_features_are_h_at_a_little_noise(toy):
    dm = toy(lambda h, t: h)
    x = torch.rand(3, 1, 2, 2)

    assert torch.equal(Encoder(dm)(x), x.flatten(1))
    assert Encoder(dm).t == 50
    with pytest.raises(ValueError, match="`features` must be one of encoder, pixels"):
        build_features("lpips", dm)
