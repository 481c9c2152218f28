"""Noise schedules and time grids."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chainograd.samplers import NoiseSchedule, time_grid


def test_the_linear_schedule_is_that_of_diffusers():
    theirs = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=2e-2).alphas_cumprod

    # Theirs is a product of 1000 float32 numbers.
    torch.testing.assert_close(
        NoiseSchedule.linear().alpha_bars.float(), theirs, rtol=1e-4, atol=0.0
    )


@pytest.mark.parametrize("T", [21, 100, 4000])
def test_the_linear_schedule_of_another_length_has_its_betas_rescaled(T):
    schedule = NoiseSchedule.linear(T)

    assert schedule.num_train_steps == T
    assert float(schedule.betas[0]) == pytest.approx(0.1 / T)
    assert float(schedule.betas[-1]) == pytest.approx(20 / T)


def test_the_cosine_schedule_follows_its_formula_until_the_betas_are_capped():
    schedule = NoiseSchedule.cosine(1000)

    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0, 250, 500, 998):
        assert schedule.alpha_bar(t) == pytest.approx(f((t + 1) / 1000) / f(0), rel=1e-9)
    assert float(schedule.betas[-1]) == 0.999


@pytest.mark.parametrize(
    "betas",
    [[], [[0.1, 0.2]], [0.1, 0.0], [0.1, 1.0], [-0.1, 0.2], [0.1, float("nan")]],
    ids=["empty", "matrix", "zero", "one", "negative", "nan"],
)
def test_betas_outside_the_open_interval_are_refused(betas):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        NoiseSchedule.from_betas(torch.tensor(betas))


def test_a_linear_schedule_so_short_that_a_beta_reaches_one_is_refused():
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        NoiseSchedule.linear(20)


@pytest.mark.parametrize("t", [-2, 1000])
def test_a_time_outside_the_schedule_is_refused_with_its_range(t):
    with pytest.raises(ValueError, match=rf"-1 … 999 .* got {t}"):
        NoiseSchedule.linear().alpha_bar(t)


@given(betas=st.lists(st.floats(1e-6, 0.5), min_size=1, max_size=30))
def test_alpha_bar_is_the_running_product_and_falls(betas):
    schedule = NoiseSchedule.from_betas(torch.tensor(betas, dtype=torch.float64))

    alpha_bars = [schedule.alpha_bar(t) for t in range(-1, len(betas))]

    assert all(a > b for a, b in pairwise(alpha_bars))
    assert alpha_bars[-1] == pytest.approx(math.prod(1 - b for b in betas), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noising_mixes_each_sample_at_its_own_time_and_keeps_the_dtype(dtype):
    schedule = NoiseSchedule.linear()
    x_0, epsilon = torch.randn(3, 2, 4, 4, dtype=dtype), torch.randn(3, 2, 4, 4, dtype=dtype)
    t = torch.tensor([0, 500, 999])

    x_t = schedule.noise(x_0, t, epsilon)

    assert x_t.dtype == dtype
    for n in range(3):
        a = schedule.alpha_bar(int(t[n]))
        expected = math.sqrt(a) * x_0[n] + math.sqrt(1 - a) * epsilon[n]
        torch.testing.assert_close(x_t[n], expected)


def test_the_spread_at_the_first_time_keeps_its_digits_in_single_precision():
    schedule = NoiseSchedule.linear()

    spread = schedule.noise(torch.zeros(1, 1), torch.tensor([0]), torch.ones(1, 1))

    # sqrt(1e-4) exactly rounded; 1 - alpha_bar taken in float32 is off in the fourth digit.
    assert spread.item() == pytest.approx(0.01, rel=1e-7)


@st.composite
def steps_and_times(draw):
    """Draw (M, T, convention) that fit together."""
    T = draw(st.integers(2, 1500))
    convention = draw(st.sampled_from(["asyrp", "author"]))
    return draw(st.integers(1, T if convention == "asyrp" else T - 1)), T, convention


@given(steps_and_times())
def test_a_grid_falls_strictly_from_the_last_time_to_its_conventions_end(arguments):
    M, T, convention = arguments

    grid = time_grid(M, T, convention=convention)

    assert len(grid) == M + 1
    assert (grid[0], grid[-1]) == (T - 1, -1 if convention == "asyrp" else 0)
    assert all(t > s for t, s in pairwise(grid))


@given(steps_and_times())
def test_a_grid_is_the_truncated_even_spacing_up_to_how_its_floats_were_rounded(arguments):
    M, T, convention = arguments
    points = M if convention == "asyrp" else M + 1
    even = torch.linspace(0, T - 1, points, dtype=torch.float64).flip(0)

    grid = torch.tensor(time_grid(M, T, convention=convention)[:points])

    if points > 1:
        # A float that should be whole may be a hair below; there alone the two may differ.
        whole = (even - even.round()).abs() < 1e-6
        assert torch.equal(grid[~whole], even[~whole].long())
        assert torch.equal(grid[whole], even[whole].round().long())


@pytest.mark.parametrize(
    ("convention", "most"), [("asyrp", 10), ("author", 9)]
)  # every time there is
def test_the_finest_grid_visits_every_time(convention, most):
    assert time_grid(most, 10, convention=convention)[:10] == tuple(range(9, -1, -1))


def test_an_unknown_convention_says_which_exist():
    with pytest.raises(ValueError, match=r"asyrp, author.*'leading'"):
        time_grid(10, convention="leading")  # type: ignore[arg-type]


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
