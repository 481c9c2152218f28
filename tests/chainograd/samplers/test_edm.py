"""EDM's samplers against closed forms, their order, diffusers and Algorithm 2 written out."""

import math
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from chainograd.samplers import (
    DDIM,
    Churn,
    EDMEuler,
    EDMHeun,
    NoiseSchedule,
    SeededNoise,
    karras_sigmas,
    time_grid,
)
from tests.oracles import DTYPES, PLANS, assert_a_chain_is_the_plain_loop
from tests.problems import plain

# Diffusers has numpy read torch tensors by a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MEAN, VARIANCE = 0.7, 0.3
BOTH = pytest.mark.parametrize("sampler", [EDMEuler, EDMHeun])


def run(step, x):
    return plain(step, step.num_steps, x)


def gaussian(x, sigma):
    """The exact denoiser where the data is N(MEAN, VARIANCE)."""
    squared = sigma.view(-1, 1) ** 2
    return (VARIANCE * x + squared * MEAN) / (VARIANCE + squared)


def curved(x, sigma):
    return torch.tanh(x / (1 + sigma.view(-1, 1) ** 2))


def test_levels_are_those_of_the_paper():
    sigmas = karras_sigmas(18)

    assert len(sigmas) == 19
    assert sigmas[0] == pytest.approx(80, rel=1e-14)
    assert sigmas[-2] == pytest.approx(0.002, rel=1e-13)
    assert sigmas[-1] == 0
    # In sigma^(1/rho) the levels are evenly spaced.
    assert np.diff(np.array(sigmas[:-1]) ** (1 / 7), n=2) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("M", [2, 7, 40])
def test_levels_are_those_of_diffusers(M):
    scheduler = diffusers.EulerDiscreteScheduler(
        use_karras_sigmas=True, sigma_min=0.01, sigma_max=50.0
    )
    scheduler.set_timesteps(M)

    # Theirs are rounded to float32.
    ours = karras_sigmas(M, sigma_min=0.01, sigma_max=50.0)
    assert ours == pytest.approx(scheduler.sigmas.tolist(), rel=1e-7)


def test_a_single_step_goes_from_the_highest_level_to_zero():
    assert karras_sigmas(1) == (pytest.approx(80), 0)


def test_with_rho_one_levels_are_uniform():
    assert karras_sigmas(4, sigma_min=1, sigma_max=4, rho=1) == (4, 3, 2, 1, 0)


@BOTH
def test_the_sample_of_gaussian_data_is_the_one_worked_out_by_hand(sampler):
    sigmas = karras_sigmas(12)
    x_T = 80 * torch.randn(4, 3, dtype=torch.float64)

    x_0 = run(sampler(gaussian, sigmas), x_T)

    # The slope is sigma / (VARIANCE + sigma^2) times the distance from the mean.
    def rate(sigma):
        return sigma / (VARIANCE + sigma**2)

    distance = x_T - MEAN
    for t, s in pairwise(sigmas):
        ahead = 1 + (s - t) * rate(t)
        second = (rate(t) + rate(s) * ahead) / 2
        distance = distance * (1 + (s - t) * second if sampler is EDMHeun and s else ahead)
    # Rounding in float64; the same below.
    torch.testing.assert_close(x_0, MEAN + distance, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("sampler", "order"), [(EDMEuler, 1), (EDMHeun, 2)])
def test_the_error_falls_with_the_order_of_the_method(sampler, order):
    x_T = 20 * torch.randn(16, 3, dtype=torch.float64)

    def error(M):
        sigmas = karras_sigmas(M + 1, sigma_min=0.1, sigma_max=20.0)[:-1]
        x = run(sampler(gaussian, sigmas), x_T)
        # The exact flow keeps the distance from the mean, in standard deviations.
        shrunk = math.sqrt((VARIANCE + sigmas[-1] ** 2) / (VARIANCE + sigmas[0] ** 2))
        return (x - MEAN - shrunk * (x_T - MEAN)).abs().max().item()

    # Of a method of order p, half the step leaves 2^-p of the error; terms of higher order are
    # still 3 % of it at 200 steps.
    assert math.log2(error(200) / error(400)) == pytest.approx(order, abs=0.05)


@BOTH
def test_many_steps_lead_to_the_sample_of_the_exact_flow(sampler):
    sigmas = karras_sigmas(1000)
    x_T = 80 * torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)

    x_0 = run(sampler(gaussian, sigmas), x_T)

    exact = MEAN + math.sqrt(VARIANCE / (VARIANCE + sigmas[0] ** 2)) * (x_T - MEAN)
    # A thousand steps leave a few times 1/1000 at first order, 1/1000^2 at second.
    bound = {EDMEuler: 5e-3, EDMHeun: 2e-5}[sampler]
    torch.testing.assert_close(x_0, exact, rtol=0, atol=bound)


@BOTH
def test_a_step_to_level_zero_gives_what_the_denoiser_says(sampler):
    x = torch.randn(2, 3, dtype=torch.float64)

    x_0 = sampler(curved, (5.0, 0.0))(x, 0)

    torch.testing.assert_close(x_0, curved(x, torch.full((2,), 5.0)), rtol=1e-14, atol=1e-14)


def test_euler_is_that_of_diffusers():
    sigmas = karras_sigmas(10, sigma_max=20.0)
    scheduler = diffusers.EulerDiscreteScheduler(
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=20.0, prediction_type="sample"
    )
    scheduler.set_timesteps(10)
    scheduler.is_scale_input_called = True  # a denoiser scales its input itself
    x_T = 20 * torch.randn(2, 3)

    theirs = x_T
    for t, sigma in zip(scheduler.timesteps, sigmas[:-1], strict=True):
        theirs = scheduler.step(curved(theirs, torch.full((2,), sigma)), t, theirs).prev_sample

    # Theirs computes in float32 whatever it is given.
    torch.testing.assert_close(run(EDMEuler(curved, sigmas), x_T), theirs, rtol=1e-6, atol=1e-6)


def test_heun_is_that_of_diffusers():
    sigmas = karras_sigmas(10, sigma_max=20.0)
    scheduler = diffusers.HeunDiscreteScheduler(prediction_type="sample")
    scheduler.set_timesteps(10)
    # With our levels in place of its float32 ones it computes in float64.
    ours = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.sigmas = torch.cat([ours[:1], ours[1:-1].repeat_interleave(2), ours[-1:]])
    asked = torch.cat([ours[:1], ours[1:-1].repeat_interleave(2)])
    x_T = 20 * torch.randn(2, 3, dtype=torch.float64)

    theirs = x_T
    for t, sigma in zip(scheduler.timesteps, asked, strict=True):
        theirs = scheduler.step(curved(theirs, sigma.expand(2)), t, theirs).prev_sample

    torch.testing.assert_close(run(EDMHeun(curved, sigmas), x_T), theirs, rtol=1e-14, atol=1e-14)


@BOTH
def test_churned_samples_are_those_of_algorithm_2_written_out(sampler):
    sigmas, noise = karras_sigmas(10), SeededNoise(5)
    churn = Churn(noise=noise, strength=3.0, sigma_min=0.05, sigma_max=50, scale=1.003)
    x_T = 80 * torch.randn(2, 3, dtype=torch.float64)

    ours = run(sampler(curved, sigmas, churn=churn), x_T)

    x, D = x_T, lambda x, sigma: curved(x, torch.full((2,), sigma, dtype=torch.float64))
    for i, (t, t_next) in enumerate(pairwise(sigmas)):
        gamma = min(3.0 / 10, math.sqrt(2) - 1) if 0.05 <= t <= 50 else 0.0
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * 1.003 * noise(x, i)
        d = (x_hat - D(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next and sampler is EDMHeun:
            d_ahead = (x - D(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d / 2 + d_ahead / 2)
    torch.testing.assert_close(ours, x, rtol=1e-13, atol=1e-13)


def test_noise_is_asked_for_by_index_and_only_where_it_is_added():
    asked = []
    noise = lambda x, i: asked.append(i) or torch.zeros_like(x)  # noqa: E731
    churn = Churn(noise=noise, strength=2.0, sigma_min=1.0, sigma_max=30.0)

    run(EDMEuler(curved, (50.0, 30.0, 10.0, 1.0, 0.5, 0.0), churn=churn), torch.zeros(1, 2))

    assert asked == [1, 2, 3]


def test_churn_raises_a_level_by_no_more_than_the_paper_says():
    seen = []
    churn = Churn(noise=SeededNoise(0), strength=1000.0)

    run(EDMEuler(lambda x, sigma: seen.append(sigma.item()) or x, (4.0, 1.0), churn=churn),
        torch.zeros(1, 2, dtype=torch.float64))  # fmt: skip

    assert seen == [pytest.approx(4 * math.sqrt(2))]


@pytest.mark.parametrize(
    ("sampler", "levels"),
    [(EDMEuler, [9, 4, 1]), (EDMHeun, [9, 4, 4, 1, 1])],
    ids=["euler", "heun"],
)
def test_the_denoiser_is_asked_at_each_level_with_whatever_the_chain_is_called_with(
    sampler, levels
):
    seen = []

    def denoiser(x, sigma, *args, **kwargs):
        seen.append((sigma.tolist(), args, kwargs))
        return x / 2

    x, step = torch.zeros(2, 3), sampler(denoiser, (9, 4, 1, 0))
    for i in range(step.num_steps):
        x = step(x, i, "class", scale=2)

    assert seen == [([level, level], ("class",), {"scale": 2}) for level in levels]


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_state_keeps_its_dtype_and_levels_are_not_rounded_below_float32(sampler, dtype):
    seen = []

    def denoiser(x, sigma):
        seen.append(sigma.dtype)
        return (x / sigma.view(-1, 1)).double()

    x = sampler(denoiser, (9.0, 4.0, 1.0))(torch.ones(2, 3, dtype=dtype), 0)

    assert x.dtype == dtype
    assert set(seen) == {torch.float64 if dtype == torch.float64 else torch.float32}


def test_euler_is_ddim_in_other_letters():
    schedule, grid = NoiseSchedule.linear(), time_grid(10)
    levels = [math.sqrt(1 / schedule.alpha_bar(t) - 1) for t in grid]

    def predictor(x, t):
        return torch.sin(x + t.view(-1, 1) / 500)

    def denoiser(x, sigma):
        t = grid[min(range(10), key=lambda i: abs(levels[i] - sigma[0].item()))]
        return x - sigma.view(-1, 1) * predictor(
            x * math.sqrt(schedule.alpha_bar(t)), torch.full((len(x),), t)
        )

    x_T = torch.randn(2, 3, dtype=torch.float64)
    ours = run(EDMEuler(denoiser, levels), x_T / math.sqrt(schedule.alpha_bar(999)))

    ddim = run(DDIM(predictor, schedule, grid), x_T)
    torch.testing.assert_close(ours, ddim, rtol=1e-12, atol=1e-12)


@BOTH
@pytest.mark.parametrize("churned", [False, True], ids=["plain", "churned"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_is_the_plain_loop_to_the_bit(plan, dtype, churned, sampler):
    churn = Churn(noise=SeededNoise(3), strength=2.0) if churned else None

    def make(network):
        return sampler(network, karras_sigmas(6, sigma_max=10.0), churn=churn)

    assert_a_chain_is_the_plain_loop(make, plan, dtype)


@BOTH
def test_the_gradient_along_a_chain_is_that_of_finite_differences(sampler):
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    churn = Churn(noise=SeededNoise(3), strength=1.0)
    step = sampler(lambda x, sigma: torch.tanh(x @ w), (5.0, 2.0, 0.5, 0.0), churn=churn)
    x_T = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x, w: run(step, x), (x_T, w))


@BOTH
@pytest.mark.parametrize(
    "sigmas",
    [(), (1.0,), (1.0, 1.0), (1.0, 2.0), (1.0, -1.0), (math.inf, 1.0), (math.nan, 1.0),
     (1.0, 0.0, 0.0)],
)  # fmt: skip
def test_levels_that_do_not_fall_to_zero_at_most_are_refused(sampler, sigmas):
    with pytest.raises(ValueError, match=r"`sigmas` must hold two numbers.*karras_sigmas"):
        sampler(curved, sigmas)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_levels_in_a_tensor_are_refused_rather_than_cut_off_from_their_gradient(requires_grad):
    with pytest.raises(TypeError, match=r"`sigmas` must hold numbers.*tolist.*of your own"):
        EDMEuler(curved, torch.tensor([3.0, 1.0], requires_grad=requires_grad))


@pytest.mark.parametrize("wrong", [{"num_steps": 0}, {"num_steps": -3}])
def test_a_number_of_steps_below_one_is_refused(wrong):
    with pytest.raises(ValueError, match="`num_steps` must be at least 1, got"):
        karras_sigmas(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"sigma_min": 0}, {"sigma_min": 90}, {"sigma_max": math.inf}, {"rho": 0}, {"rho": math.nan}],
)
def test_levels_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"`sigma_min`, `sigma_max` and `rho` must be positive"):
        karras_sigmas(5, **wrong)


@pytest.mark.parametrize("wrong", [{"strength": -1.0}, {"strength": 1.0, "scale": -1.0}])
def test_a_negative_churn_is_refused(wrong):
    with pytest.raises(ValueError, match="`strength` and `scale` must be at least 0"):
        Churn(noise=SeededNoise(0), **wrong)
