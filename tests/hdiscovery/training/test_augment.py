"""Pairs seen anew: both images moved alike, and within bounds."""

import torch
from hdiscovery.training.augment import moved_alike


def blob(n=64, edge=32):
    """Return images with one round spot in the middle, on -1."""
    at = torch.arange(edge) - (edge - 1) / 2
    spot = torch.exp(-(at[:, None] ** 2 + at[None] ** 2) / 8)
    return (2 * spot - 1).expand(n, 1, edge, edge).contiguous()


def centres(images):
    """Return the centre of mass of each image's spot, ``[N, 2]``, in pixels from the middle."""
    mass = (images[:, 0] + 1).double()
    at = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    total = mass.sum((1, 2))
    return torch.stack([(mass.sum(2) * at).sum(1) / total, (mass.sum(1) * at).sum(1) / total], 1)


def test_the_two_images_of_a_pair_move_alike_and_pairs_differ():
    torch.manual_seed(0)
    a, b = moved_alike(blob(), -blob())

    torch.testing.assert_close(a, -b)
    assert len({tuple(image.flatten().tolist()) for image in a}) == len(a)


def test_moves_stay_within_a_sixteenth_of_the_edge_and_reach_it_both_ways():
    torch.manual_seed(0)
    moved = centres(moved_alike(blob(256), blob(256))[0])

    assert moved.abs().max() <= 2 * 1.1 * 2**0.5 + 0.05  # moved, then scaled and turned
    assert moved.max() > 1.5
    assert moved.min() < -1.5


def test_images_are_turned_about_their_middle_by_fifteen_degrees_at_most():
    torch.manual_seed(0)
    edge = 32
    bar = -torch.ones(256, 1, edge, edge)
    bar[:, :, :, 15:17] = 1
    turned = moved_alike(bar, bar)[0]
    mass = (turned[:, 0] + 1).double()
    at = (torch.arange(edge) - (edge - 1) / 2).double()
    column = (mass * at).sum(2) / mass.sum(2)  # where the bar is in each row
    slope = (column[:, 24] - column[:, 8]) / 16
    degrees = torch.rad2deg(torch.atan(slope))

    assert degrees.abs().max() < 15.5
    assert degrees.max() > 12
    assert degrees.min() < -12


def test_the_border_goes_on_and_types_stay():
    flat = torch.full((3, 2, 16, 16), 0.25, dtype=torch.float64)
    a, b = moved_alike(flat, flat - 1)

    torch.testing.assert_close(a, flat)
    torch.testing.assert_close(b, flat - 1)
