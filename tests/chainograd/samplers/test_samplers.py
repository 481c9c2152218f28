"""Schedules, grids and DDIM against closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from chainograd import CheckpointedChain
from chainograd.samplers import DDIM, NoiseSchedule, time_grid


def gaussian_predictor(schedule, variance):
    """The exact noise prediction where the data is N(0, variance)."""

    def epsilon(x, t):
        a = schedule.alpha_bars[t].to(x.dtype).view(-1, 1)
        return (1 - a).sqrt() * x / (a * variance + 1 - a)

    return epsilon


def test_the_linear_schedule_has_the_published_ends():
    schedule = NoiseSchedule.linear()

    assert schedule.alpha_bars.dtype == torch.float64
    assert schedule.alpha_bar(0) == pytest.approx(0.9999, abs=1e-12)
    assert schedule.alpha_bar(999) == pytest.approx(4.036e-5, rel=1e-3)
    assert schedule.alpha_bar(-1) == 1.0


@pytest.mark.parametrize(("convention", "end"), [("asyrp", -1), ("author", 0)])
def test_both_grids_shift_24_of_40_steps_at_400_and_20_at_500(convention, end):
    grid = time_grid(40, convention=convention)

    assert (len(grid), grid[0], grid[-1]) == (41, 999, end)
    assert sum(t >= 400 for t in grid[:-1]) == 24
    assert sum(t >= 500 for t in grid[:-1]) == 20
    assert all(t > s for t, s in pairwise(grid))


def test_ddim_follows_the_closed_form_of_gaussian_data():
    schedule, variance = NoiseSchedule.linear(), 0.5
    grid = time_grid(999, convention="asyrp")
    x_T = torch.randn(8, 3, dtype=torch.float64)

    x_0 = CheckpointedChain(DDIM(gaussian_predictor(schedule, variance), schedule, grid), 999)(x_T)

    # The exact flow keeps x / std(x) fixed.
    a = schedule.alpha_bar(999)
    exact = x_T * math.sqrt(variance / (a * variance + 1 - a))
    torch.testing.assert_close(x_0, exact, rtol=5e-3, atol=0)


def test_inversion_leads_back_and_the_better_the_finer_the_grid():
    schedule = NoiseSchedule.linear()
    model = gaussian_predictor(schedule, 0.5)
    x_0 = torch.randn(8, 3, dtype=torch.float64)

    def error(M):
        grid = time_grid(M)
        there = CheckpointedChain(DDIM(model, schedule, grid[::-1]), M)(x_0)
        return (CheckpointedChain(DDIM(model, schedule, grid), M)(there) - x_0).abs().max()

    assert error(400) < error(100) < error(25)
    assert error(400) < 0.05


def test_eta_above_zero_needs_noise_and_uses_it_as_a_value():
    schedule, grid = NoiseSchedule.linear(), time_grid(5)
    with pytest.raises(ValueError, match="eta"):
        DDIM(lambda x, t: x, schedule, grid, eta=0.5)

    def noise(x, i):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=x.dtype)

    step = DDIM(gaussian_predictor(schedule, 0.5), schedule, grid, eta=0.5, noise=noise)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    y = x
    for i in range(5):
        y = step(y, i)
    z = CheckpointedChain(step, 5)(x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(z.sum(), x)[0])
