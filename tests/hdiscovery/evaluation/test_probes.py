"""Probes on shapes that were drawn with known answers."""

import math

import pytest
import torch
from hdiscovery.evaluation import probes


def blank(size=32):
    return torch.full((1, 1, size, size), -1.0)


def bar(width, *, height=20, left=10):
    image = blank()
    image[..., 6 : 6 + height, left : left + width] = 1
    return image


@pytest.mark.parametrize("width", [2, 3, 4, 6])
def test_the_thickness_of_a_bar_is_its_width(width):
    assert probes.thickness(bar(width)).item() == pytest.approx(width, abs=0.3)
    assert probes.thickness(bar(width).mT).item() == pytest.approx(width, abs=0.3)


def test_the_thickness_of_a_disc_is_its_diameter():
    i = torch.arange(32) - 15.5
    disc = torch.where(i[:, None] ** 2 + i**2 <= 8**2, 1.0, -1.0)[None, None]

    assert probes.thickness(disc).item() == pytest.approx(16, abs=1)


@pytest.mark.parametrize("degrees", [-30, -10, 0, 20])
def test_the_slant_of_a_sheared_bar_is_its_angle(degrees):
    y, x = torch.meshgrid(15.5 - torch.arange(32), torch.arange(32) - 15.5, indexing="ij")
    inside = (x - y * math.tan(math.radians(degrees))).abs() < 2.5
    image = torch.where(inside & (y.abs() < 9), 1.0, -1.0)[None, None]

    assert probes.slant(image).item() == pytest.approx(degrees, abs=1.5)


def test_width_and_size_are_those_of_the_box():
    assert probes.width(bar(5, height=20)).item() == 5
    assert probes.size(bar(5, height=20)).item() == pytest.approx(10)


def test_an_empty_image_has_none_of_it_and_the_others_of_a_batch_do_not_mind():
    images = torch.cat([blank(), bar(4)])

    for name, probe in probes.probes_for((1, 32, 32)).items():
        empty, other = probe(images).tolist()
        assert empty == 0, name
        assert other == pytest.approx(probe(bar(4)).item())


def test_the_distance_transform_is_exact():
    torch.manual_seed(0)
    mask = torch.rand(3, 9, 12) < 0.8
    outside = torch.nn.functional.pad(mask, (1, 1, 1, 1))
    expected = torch.zeros(3, 9, 12)
    for n in range(3):
        free = (~outside[n]).nonzero().float() - 1
        for i in range(9):
            for j in range(12):
                apart = (free - torch.tensor([float(i), float(j)])).norm(dim=1)
                expected[n, i, j] = apart.min() if mask[n, i, j] else 0

    torch.testing.assert_close(probes.distance_transform(mask), expected)


def test_coloured_images_have_probes_of_their_own():
    grey = torch.full((1, 3, 4, 4), 0.5)
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    found = {name: probe(torch.cat([grey, red])) for name, probe
             in probes.probes_for((3, 4, 4)).items()}  # fmt: skip

    assert found["brightness"].tolist() == pytest.approx([0.5, -1 / 3])
    assert found["contrast"].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert found["colourfulness"].tolist() == pytest.approx([0, math.sqrt(8) / 3])
