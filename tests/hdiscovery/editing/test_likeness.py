"""How alike directions are, where it is known."""

import pytest
import torch
from hdiscovery.directions.fixed import GlobalDirections, MeanDirections
from hdiscovery.directions.portable import PortableDirections
from hdiscovery.dm.walk import draw_noise
from hdiscovery.editing.distance import Pixels
from hdiscovery.editing.inversion import generate
from hdiscovery.editing.likeness import (
    Difference,
    between_directions,
    measure_cosines,
    measure_differences,
    most_and_least_alike,
)
from hdiscovery.editing.means import measure_means

from chainograd.samplers import time_grid

GRID = time_grid(4)
D = torch.tensor([[[[1.0, 0], [0, 0]]], [[[0, 0], [0.5, 2]]]])


def likeness(dm, source_of, directions):
    source = source_of(dm, directions)
    means = measure_means(dm, directions, draw_noise(dm, 40, 0), GRID, K=2, t_stop=400)
    portable = PortableDirections(source.about, means.global_, means.mean)
    sources = {"direct": source,
               "mean": source_of(dm, MeanDirections(means.mean, means.times)),
               "global": source_of(dm, GlobalDirections(means.global_))}  # fmt: skip
    x_T = draw_noise(dm, 6, 1)
    cosines = measure_cosines(source, portable, x_T, GRID)
    differences = measure_differences(
        sources, {"pixels": Pixels()}, x_T, generate(dm, x_T, num_steps=4), strength=1e-3,
        num_steps=4,
    )  # fmt: skip
    return cosines, [of_k["pixels"] for of_k in differences]


def test_directions_that_do_not_look_at_h_are_alike_in_every_way(gaussian, source_of):
    cosines, differences = likeness(gaussian[0], source_of, GlobalDirections(D))

    for of_k in cosines:
        for values in (of_k.direct_mean, of_k.direct_global, of_k.mean_global):
            assert values == pytest.approx([1.0, 1.0], abs=1e-3)
    for of_k in differences:
        assert of_k.size > 1e-3
        assert of_k.mean < 0.01
        assert of_k.global_ < 0.01
        assert of_k.another > 0.5


def test_directions_that_turn_with_time_are_like_their_mean_and_unlike_the_global_one(
    gaussian, source_of
):
    def turning(h, embedding, k, t):
        return (1 if t > 800 else -0.5) * D[k].to(h)

    cosines, _ = likeness(gaussian[0], source_of, turning)

    assert cosines[0].direct_mean == pytest.approx([1, 1], abs=1e-3)
    assert cosines[0].mean_global == pytest.approx([1, -1], abs=1e-3)
    assert cosines[0].direct_global == pytest.approx([1, -1], abs=1e-3)


def test_directions_that_follow_h_are_unlike_their_mean(gaussian, source_of):
    cosines, differences = likeness(gaussian[0], source_of, lambda h, e, k, t: h.clone())

    assert abs(cosines[0].direct_mean[0]) < 0.5
    assert differences[0].mean > 0.5


def test_the_likeness_between_directions_leaves_each_with_itself_out():
    assert between_directions(D) == 0
    assert between_directions(torch.cat([D[:1], -D[:1]])) == pytest.approx(1)


def test_the_most_and_the_least_alike_are_by_the_global_edits():
    found = [Difference(1.0, 0.0, apart, 1.0) for apart in (0.4, 0.1, 0.9)]

    assert most_and_least_alike(found) == [1, 2]
