"""Mean directions over samples, by hand."""

import pytest
import torch
from hdiscovery.directions.times import shifted_times
from hdiscovery.dm.walk import bottlenecks, draw_noise
from hdiscovery.editing.means import measure_means

from chainograd.samplers import DDIM, time_grid

GRID = time_grid(4)  # 999, 666, 333, 0, -1


def of_h(h, embedding, k, t):
    """A direction that depends on all it is given."""
    return (k[:, None, None, None] + 1) * h.tanh() + embedding[:, :, None, None] / 1000 + t / 500


def test_means_are_over_the_samples_on_their_unshifted_way_and_then_over_the_shifted_steps(
    gaussian,
):
    dm, _ = gaussian
    x_T = draw_noise(dm, 5, 0).double()
    step = DDIM(dm.unet, dm.schedule, GRID)

    means = measure_means(dm, of_h, x_T, GRID, K=2, t_stop=333, dtype=torch.float64)

    x, by_hand = x_T, []
    with torch.no_grad():
        for i, t in enumerate((999, 666, 333)):
            by_hand.append(
                torch.stack([((k + 1) * x.tanh() + t / 1000 + t / 500).mean(0) for k in (0, 1)])
            )
            x = step(x, i)
    assert means.times == (999, 666, 333)
    torch.testing.assert_close(means.mean, torch.stack(by_hand, 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(means.global_, means.mean.mean(1), rtol=1e-12, atol=1e-12)


def test_the_walk_ends_with_the_last_shifted_step(gaussian):
    dm, _ = gaussian
    x_T = draw_noise(dm, 1, 0).double()

    assert [b.t for b in bottlenecks(dm, x_T, GRID, t_stop=500)] == [999, 666]
    assert shifted_times(GRID, 666) == (999, 666)
    with pytest.raises(ValueError, match=r"No step is shifted.*`t_stop` 1000"):
        shifted_times(GRID, 1000)


@pytest.mark.parametrize("size", [1e6, 1e-8])
def test_a_mean_that_half_precision_cannot_hold_is_refused_with_the_way_out(gaussian, size):
    dm, _ = gaussian

    with pytest.raises(ValueError, match=r"direction 0 at t = 999.*Use float32"):
        measure_means(
            dm, lambda h, e, k, t: size * torch.ones_like(h), draw_noise(dm, 1, 0).double(), GRID,
            K=1, t_stop=400,
        )  # fmt: skip
