"""t_stop is the first time at which the predicted x_0 is far from x_0."""

import pytest
import torch
from hdiscovery.evaluation.t_stop import choose_t_stop, curve, draw_curve, first_time

from chainograd.samplers import DDIM, time_grid

ABOUT = {"name": "squares", "sha256": ""}


def squares(x, y):
    return (x - y).square().mean((1, 2, 3))


@pytest.mark.parametrize(
    ("threshold", "t"), [(0.05, 250), (0.1, 250), (0.10001, 500), (0.3, 500), (1e-9, 250)]
)
def test_the_first_time_at_or_above_the_threshold_is_taken(threshold, t):
    assert first_time([0, 250, 500, 750], [0.0, 0.1, 0.3, 0.2], threshold) == t


def test_a_threshold_that_is_never_reached_says_how_far_it_goes():
    with pytest.raises(ValueError, match=r"its largest value is 0\.3.*smaller `threshold`"):
        first_time([0, 250], [0.0, 0.3], 0.31)


def test_the_curve_is_that_of_predicted_x_0_along_the_unshifted_way(networks):
    dm = networks.dm
    times, d, unrelated = curve(dm, squares, num_samples=3, num_steps=4, seed=2, batch_size=2)

    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    grid = time_grid(4)
    step, P = DDIM(dm.unet, dm.schedule, grid), {}
    with torch.no_grad():
        for i, t in enumerate(grid[:-1]):
            a = dm.schedule.alpha_bar(t)
            epsilon = dm.unet(x, torch.full((3,), t))
            P[t] = (x - (1 - a) ** 0.5 * epsilon) / a**0.5
            x = step(x, i)
    assert times == [0, 333, 666, 999]
    assert d == pytest.approx([squares(P[t], x).mean().item() for t in times], rel=1e-3, abs=1e-6)
    assert unrelated == pytest.approx(squares(x, x.roll(1, 0)).mean().item(), rel=1e-3)


def test_a_share_is_one_of_the_distance_of_unrelated_samples(networks):
    chosen = choose_t_stop(networks.dm, squares, features=ABOUT, share=1e-10, num_samples=4,
                           num_steps=5)  # fmt: skip

    assert chosen.threshold == pytest.approx(1e-10 * chosen.unrelated)
    assert chosen.t_stop == first_time(chosen.times, chosen.distances, chosen.threshold)
    assert chosen.at(chosen.times[2]) == pytest.approx(chosen.distances[2])


@pytest.mark.parametrize("given", [{}, {"threshold": 0.1, "share": 0.1}])
def test_just_one_of_threshold_and_share_is_taken(networks, given):
    with pytest.raises(ValueError, match="one of `threshold` and `share`"):
        choose_t_stop(networks.dm, squares, features=ABOUT, **given)


def test_the_picture_is_written(networks, tmp_path):
    chosen = choose_t_stop(networks.dm, squares, features=ABOUT, share=1e-10, num_samples=2,
                           num_steps=3)  # fmt: skip

    path = draw_curve(chosen, tmp_path / "t.png", preset=400)

    assert path.read_bytes().startswith(b"\x89PNG")
