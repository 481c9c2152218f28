"""Directions that look at neither h nor, but for the step, the time."""

import pytest
import torch
from hdiscovery.directions.fixed import GlobalDirections, MeanDirections

MEAN = torch.arange(3 * 2 * 4.0).view(3, 2, 1, 2, 2).half()  # K = 3, times 999 and 500
H, K = torch.zeros(2, 1, 2, 2, dtype=torch.float64), torch.tensor([2, 0])


@pytest.mark.parametrize(("t", "step"), [(999, 0), (800, 0), (700, 1), (500, 1), (400, 1)])
def test_a_mean_direction_is_that_of_the_nearest_time_for_each_sample(t, step):
    dh = MeanDirections(MEAN, (999, 500))(H, H, K, t)

    assert torch.equal(dh, MEAN[K, step].double())


def test_a_global_direction_is_the_same_at_all_times():
    directions = GlobalDirections(MEAN[:, 0])

    assert torch.equal(directions(H, H, K, 999), MEAN[K, 0].double())
    assert torch.equal(directions(H, H, K, 0), directions(H, H, K, 999))


def test_a_mean_needs_a_time_for_each_step():
    with pytest.raises(ValueError, match="one step for each of the 3 `times`"):
        MeanDirections(MEAN, (999, 500, 400))
