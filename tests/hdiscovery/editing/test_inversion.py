"""DDIM inversion against closed forms."""

import math

import pytest
import torch
from hdiscovery.editing.inversion import (
    Inverted,
    generate,
    invert,
    load_inversion,
    psnr,
    save_inversion,
)


def images(n=3):
    return torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double() * 2 - 1


@pytest.mark.parametrize("convention", ["asyrp", "author"])
def test_an_image_comes_back_exactly_where_the_noise_is_the_same_everywhere(toy, convention):
    dm = toy(lambda h, t: torch.full_like(h, 0.7))
    x_0 = images()

    x_T = invert(dm, x_0, num_steps=7, convention=convention)

    assert (x_T - x_0).abs().min() > 0.05
    back = generate(dm, x_T, num_steps=7, convention=convention)
    torch.testing.assert_close(back, x_0, rtol=0, atol=1e-12)


def test_the_error_of_the_noise_falls_with_the_steps_towards_the_flow_of_gaussian_data(gaussian):
    dm, flow = gaussian
    x_0 = images()

    errors = [
        (invert(dm, x_0, num_steps=steps) - flow(x_0)).abs().max().item()
        for steps in (125, 250, 500)
    ]

    assert errors[2] < 0.02
    assert 1.7 < errors[0] / errors[1] < 2.4  # Euler's method is of first order
    assert 1.7 < errors[1] / errors[2] < 2.4


def test_the_way_there_and_back_misses_by_less_with_more_steps(gaussian):
    dm, _ = gaussian
    x_0 = images()

    errors = [
        (generate(dm, invert(dm, x_0, num_steps=n), num_steps=n) - x_0).abs().max().item()
        for n in (20, 100, 500)
    ]

    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_nothing_is_clamped_on_the_way(toy):
    dm = toy(lambda h, t: torch.zeros_like(h))
    x_0 = 30 * images()

    assert torch.allclose(generate(dm, invert(dm, x_0, num_steps=5), num_steps=5), x_0)


def test_psnr_is_of_the_pictures_that_one_sees():
    white = torch.ones(2, 1, 2, 2)
    others = torch.stack([white[0] + 5, white[0] - 0.2])

    assert psnr(white, others) == [math.inf, pytest.approx(20, abs=1e-4)]


def test_an_inversion_is_read_as_it_was_written_and_by_its_own_model_alone(toy, tmp_path):
    dm, other = toy(lambda h, t: h), toy(lambda h, t: h)
    with torch.no_grad():
        other.unet.weight += 1
    path = tmp_path / "a.safetensors"
    x_0, x_T = images(2)

    save_inversion(path, Inverted(x_0, x_T, 30), dm)
    read = load_inversion(path, dm)

    assert torch.equal(read.x_0, x_0)
    assert torch.equal(read.x_T, x_T)
    assert read.num_steps == 30
    with pytest.raises(ValueError, match="another diffusion model than toy"):
        load_inversion(path, other)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="not an inverted image"):
        load_inversion(path, dm)
