"""The DDIM step: exact per step, equal to diffusers', a pure function."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chainograd import CheckpointedChain
from chainograd.samplers import DDIM, NoiseSchedule, ddim_sigma, ddim_update, time_grid

SCHEDULE = NoiseSchedule.linear()


def run(step, x):
    for i in range(step.num_steps):
        x = step(x, i)
    return x


def gaussian_predictor(mean, variance):
    """The exact noise prediction where the data is N(mean, variance)."""

    def epsilon(x, t):
        a = SCHEDULE.alpha_bars[t].view(-1, 1)
        return (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * variance + 1 - a)

    return epsilon


@pytest.mark.parametrize("convention", ["asyrp", "author"])
@pytest.mark.parametrize("M", [1, 5, 40])
def test_the_sample_of_gaussian_data_is_the_one_worked_out_by_hand(M, convention):
    mean, variance = 0.7, 0.3
    grid = time_grid(M, convention=convention)
    x_T = torch.randn(4, 3, dtype=torch.float64)

    x_0 = run(DDIM(gaussian_predictor(mean, variance), SCHEDULE, grid), x_T)

    # With Gaussian data a step scales the distance from sqrt(alpha_bar) mean by a known factor.
    distance = x_T - math.sqrt(SCHEDULE.alpha_bar(grid[0])) * mean
    for t, s in pairwise(grid):
        a_t, a_s = SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(s)
        scaled = math.sqrt(a_s * a_t) * variance + math.sqrt((1 - a_s) * (1 - a_t))
        distance = distance * scaled / (a_t * variance + 1 - a_t)
    expected = math.sqrt(SCHEDULE.alpha_bar(grid[-1])) * mean + distance
    torch.testing.assert_close(x_0, expected, rtol=1e-10, atol=1e-10)


@given(
    t=st.integers(1, 999),
    back=st.integers(1, 1000),
    eta=st.floats(0, 1),
    x_0=st.floats(-2, 2),
)
def test_a_step_with_the_true_noise_lands_on_the_forward_process(t, back, eta, x_0):
    a_t, a_s = SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(max(t - back, -1))
    sigma = ddim_sigma(eta, a_t, a_s)
    # The columns hold the coefficients of x_0, of the old noise and of the fresh noise.
    x, e, z = torch.diag(torch.tensor([x_0, 1, 1], dtype=torch.float64)).unbind()

    x_s = ddim_update(
        math.sqrt(a_t) * x + math.sqrt(1 - a_t) * e,
        e, alpha_bar_t=a_t, alpha_bar_s=a_s, sigma=sigma, z=z,
    )  # fmt: skip

    assert x_s[0].item() == pytest.approx(math.sqrt(a_s) * x_0, abs=1e-9)
    assert x_s[1:].square().sum().item() == pytest.approx(1 - a_s, abs=1e-9)


def test_eta_one_is_the_posterior_of_ddpm():
    t = 300
    a_t, a_s = SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(t - 1)
    beta = float(SCHEDULE.betas[t])
    x_0, x_t = torch.randn(2, 5, dtype=torch.float64).unbind()
    epsilon = (x_t - math.sqrt(a_t) * x_0) / math.sqrt(1 - a_t)

    mean = ddim_update(
        x_t, epsilon, alpha_bar_t=a_t, alpha_bar_s=a_s,
        sigma=ddim_sigma(1.0, a_t, a_s), z=torch.zeros_like(x_t),
    )  # fmt: skip

    of_x_0 = math.sqrt(a_s) * beta / (1 - a_t)
    of_x_t = math.sqrt(1 - beta) * (1 - a_s) / (1 - a_t)
    torch.testing.assert_close(mean, of_x_0 * x_0 + of_x_t * x_t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_is_that_of_diffusers_on_a_grid_they_share(eta):
    scheduler = diffusers.DDIMScheduler(
        timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(20)
    # They step to t - 50 whatever the grid is, which with 20 dividing 1000 is the neighbour.
    grid = (*scheduler.timesteps.tolist(), -1)
    schedule = NoiseSchedule.from_betas(scheduler.betas)
    z = torch.randn(20, 2, 3, dtype=torch.float64)

    def model(x, t):
        return torch.tanh(x * (1 + t.view(-1, 1) / 1000))

    x_T = torch.randn(2, 3, dtype=torch.float64)
    ours = run(DDIM(model, schedule, grid, eta=eta, noise=lambda x, i: z[i]), x_T)

    theirs = x_T
    for i, t in enumerate(scheduler.timesteps):
        noise = {"variance_noise": z[i]} if eta else {}
        theirs = scheduler.step(model(theirs, t.expand(2)), t, theirs, eta=eta, **noise).prev_sample
    # Their alpha-bars are float32 products: 1e-5 in the last of them.
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_asymmetric_noise_enters_the_predicted_x_0_alone():
    a_t, a_s = 0.3, 0.6
    x, e, e_p = torch.randn(3, 4, dtype=torch.float64).unbind()

    x_s = ddim_update(x, e, alpha_bar_t=a_t, alpha_bar_s=a_s, epsilon_p=e_p)

    P = (x - math.sqrt(1 - a_t) * e_p) / math.sqrt(a_t)
    torch.testing.assert_close(x_s, math.sqrt(a_s) * P + math.sqrt(1 - a_s) * e)


def test_the_network_is_called_once_a_step_at_each_time_of_the_grid():
    seen = []

    def model(x, t, *args, **kwargs):
        seen.append((t.dtype, t.tolist(), args, kwargs))
        return x

    x = torch.zeros(2, 3)
    step = DDIM(model, SCHEDULE, time_grid(4))
    for i in range(4):
        x = step(x, i, "class", scale=2)

    assert [times for _, times, _, _ in seen] == [[t, t] for t in (999, 666, 333, 0)]
    assert all(call[::2] == (torch.int64, ("class",)) for call in seen)
    assert all(kwargs == {"scale": 2} for *_, kwargs in seen)


def test_inversion_from_clean_data_asks_the_network_at_its_lowest_time():
    seen = []
    step = DDIM(lambda x, t: seen.append(t.tolist()) or x, SCHEDULE, time_grid(4)[::-1])

    run(step, torch.ones(1, 1, dtype=torch.float64) * 0.1)

    assert seen == [[0], [0], [333], [666]]


def test_a_step_depends_on_nothing_but_its_index_and_state():
    step = DDIM(gaussian_predictor(0.0, 0.5), SCHEDULE, time_grid(5))
    x = torch.randn(2, 3, dtype=torch.float64)
    first = [step(x, i) for i in range(5)]

    again = [step(x, i) for i in reversed(range(5))]

    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_noise_is_asked_for_by_index_and_not_for_the_jump_to_clean_data():
    asked = []
    noise = lambda x, i: asked.append(i) or torch.zeros_like(x)  # noqa: E731

    run(DDIM(lambda x, t: x, SCHEDULE, time_grid(4), eta=1.0, noise=noise), torch.zeros(1, 2))

    assert asked == [0, 1, 2]


def test_a_network_of_lower_precision_does_not_lower_the_states():
    step = DDIM(lambda x, t: x.bfloat16(), SCHEDULE, time_grid(4))

    assert step(torch.randn(1, 2), 0).dtype == torch.float32


def test_the_gradient_passes_beyond_the_range_of_images_unless_clamped():
    x = torch.tensor([[4.0, 0.1]], dtype=torch.float64, requires_grad=True)

    def gradient(clamp):
        x_s = DDIM(lambda x, t: 0 * x, SCHEDULE, (500, 100), clamp=clamp)(x, 0)
        return torch.autograd.grad(x_s.sum(), x)[0]

    assert (gradient(None) > 0).all()
    assert gradient(1.0).tolist()[0][0] == 0
    assert gradient(1.0)[0, 1] == gradient(None)[0, 1]


def test_the_gradient_along_a_chain_is_that_of_finite_differences():
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    step = DDIM(lambda x, t: torch.tanh(x @ w), SCHEDULE, time_grid(4, convention="author"))
    x_T = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    # atol: the chain amplifies by up to 1/sqrt(alpha_bar(999)) = 157.
    assert torch.autograd.gradcheck(lambda x, w: run(step, x), (x_T, w), atol=1e-4)


@pytest.mark.parametrize("grid", [(), (999,), (999, 500, 500, 0), (0, 500, 400)])
def test_a_grid_that_neither_falls_nor_rises_is_refused(grid):
    with pytest.raises(ValueError, match=r"falling.*or rising"):
        DDIM(lambda x, t: x, SCHEDULE, grid)


@pytest.mark.parametrize(
    ("grid", "eta"), [((9, 5, 0), -0.1), ((0, 5, 9), 0.5)], ids=["negative", "inversion"]
)
def test_an_eta_that_does_not_fit_the_grid_is_refused(grid, eta):
    with pytest.raises(ValueError, match="`eta` must be 0 for inversion and at least 0"):
        DDIM(lambda x, t: x, SCHEDULE, grid, eta=eta, noise=lambda x, i: x)


def test_a_stochastic_update_without_its_noise_is_refused():
    x = torch.zeros(2)

    with pytest.raises(ValueError, match="`z` is needed"):
        ddim_update(x, x, alpha_bar_t=0.3, alpha_bar_s=0.6, sigma=0.1)


def test_ddim_follows_the_closed_form_of_gaussian_data():
    variance = 0.5
    grid = time_grid(999, convention="asyrp")
    x_T = torch.randn(8, 3, dtype=torch.float64)

    x_0 = CheckpointedChain(DDIM(gaussian_predictor(0.0, variance), SCHEDULE, grid), 999)(x_T)

    # The exact flow keeps x / std(x) fixed.
    a = SCHEDULE.alpha_bar(999)
    exact = x_T * math.sqrt(variance / (a * variance + 1 - a))
    torch.testing.assert_close(x_0, exact, rtol=5e-3, atol=0)


def test_inversion_leads_back_and_the_better_the_finer_the_grid():
    model = gaussian_predictor(0.0, 0.5)
    x_0 = torch.randn(8, 3, dtype=torch.float64)

    def error(M):
        grid = time_grid(M)
        there = CheckpointedChain(DDIM(model, SCHEDULE, grid[::-1]), M)(x_0)
        return (CheckpointedChain(DDIM(model, SCHEDULE, grid), M)(there) - x_0).abs().max()

    assert error(400) < error(100) < error(25)
    assert error(400) < 0.05


def test_eta_above_zero_needs_noise_and_uses_it_as_a_value():
    grid = time_grid(5)
    with pytest.raises(ValueError, match="eta"):
        DDIM(lambda x, t: x, SCHEDULE, grid, eta=0.5)

    def noise(x, i):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=x.dtype)

    step = DDIM(gaussian_predictor(0.0, 0.5), SCHEDULE, grid, eta=0.5, noise=noise)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    y = x
    for i in range(5):
        y = step(y, i)
    z = CheckpointedChain(step, 5)(x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(z.sum(), x)[0])
