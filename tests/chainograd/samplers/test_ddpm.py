"""Ancestral sampling: the posterior of the forward process, equal to diffusers' and to DDIM's."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch

from chainograd.samplers import DDIM, DDPM, NoiseSchedule, SeededNoise, time_grid
from tests.oracles import DTYPES, PLANS, assert_a_chain_is_the_plain_loop
from tests.problems import plain

SCHEDULE = NoiseSchedule.linear()
TRAILING = (*range(999, 0, -20), -1)  # of 50 steps
UNEVEN = (999, 700, 640, 200, 3, 0, -1)


def run(step, x):
    return plain(step, step.num_steps, x)


def model(x, t):
    return torch.sin(2 * x + t.view(-1, 1) / 500)


@pytest.mark.parametrize("clamp", [None, 1.0])
@pytest.mark.parametrize(
    ("variance", "grid"),
    # On the trailing grid diffusers adds the large variance's noise to clean data.
    [("small", time_grid(1000)), ("large", time_grid(1000)), ("small", UNEVEN),
     ("large", UNEVEN), ("small", TRAILING)],
    ids=["small-full", "large-full", "small-uneven", "large-uneven", "small-trailing"],
)  # fmt: skip
def test_samples_are_those_of_diffusers(variance, grid, clamp):
    scheduler = diffusers.DDPMScheduler(
        variance_type=f"fixed_{variance}",
        clip_sample=clamp is not None,
        timestep_spacing="trailing",
    )
    if grid is UNEVEN:
        scheduler.set_timesteps(timesteps=grid[:-1])
    else:
        scheduler.set_timesteps(len(grid) - 1)
    # Their float32 tables are off by 1e-5; with ours both are float64 throughout.
    scheduler.alphas_cumprod = SCHEDULE.alpha_bars
    scheduler.one = torch.ones((), dtype=torch.float64)
    x_T = torch.randn(2, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in grid[1:]]

    ours = run(DDPM(model, SCHEDULE, grid, noise=lambda x, i: z[i], variance=variance,
                    clamp=clamp), x_T)  # fmt: skip

    theirs, generator = x_T, generator.manual_seed(0)
    assert tuple(scheduler.timesteps.tolist()) == grid[:-1]
    for t in scheduler.timesteps:
        theirs = scheduler.step(model(theirs, t.expand(2)), t, theirs, generator).prev_sample
    # Rounding in float64, amplified by up to 1/sqrt(alpha_bar(999)) = 157. From a last time above
    # 0 they add noise of 1e-10 to clean data.
    atol = 1e-9 if grid is TRAILING else 1e-12
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("grid", [time_grid(40), UNEVEN, (999, 500, 0)])
def test_the_small_variance_is_ddim_with_eta_one(grid):
    x_T, noise = torch.randn(2, 3, dtype=torch.float64), SeededNoise(4)

    ancestral = run(DDPM(model, SCHEDULE, grid, noise=noise), x_T)

    ddim = run(DDIM(model, SCHEDULE, grid, eta=1.0, noise=noise), x_T)
    torch.testing.assert_close(ancestral, ddim, rtol=1e-12, atol=1e-12)


def test_with_a_clamp_it_is_not_ddim():
    x_T, noise = 3 + torch.randn(2, 3, dtype=torch.float64), SeededNoise(4)

    ancestral = run(DDPM(model, SCHEDULE, TRAILING, noise=noise, clamp=1.0), x_T)

    ddim = run(DDIM(model, SCHEDULE, TRAILING, eta=1.0, noise=noise, clamp=1.0), x_T)
    assert (ancestral - ddim).abs().max() > 0.01


def affine(model, variance, i):
    """Slope, offset and noise of step i, which is affine where the data is Gaussian."""

    def at(x, z):
        step = DDPM(
            model, SCHEDULE, UNEVEN, noise=lambda x, i: torch.full_like(x, z), variance=variance
        )
        return step(torch.tensor([[x]], dtype=torch.float64), i).item()

    return at(1.0, 0.0) - at(0.0, 0.0), at(0.0, 0.0), at(0.0, 1.0) - at(0.0, 0.0)


def test_of_data_at_one_point_the_small_variance_keeps_the_forward_process():
    c = 0.4

    def exact(x, t):
        a = SCHEDULE.alpha_bars[t].view(-1, 1)
        return (x - a.sqrt() * c) / (1 - a).sqrt()

    for i, (t, s) in enumerate(pairwise(UNEVEN)):
        a_t, a_s = SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(s)
        slope, offset, sigma = affine(exact, "small", i)

        assert offset + slope * math.sqrt(a_t) * c == pytest.approx(math.sqrt(a_s) * c, abs=1e-12)
        assert slope**2 * (1 - a_t) + sigma**2 == pytest.approx(1 - a_s, abs=1e-12)


def test_of_standard_normal_data_the_large_variance_keeps_the_forward_process():
    def exact(x, t):
        return (1 - SCHEDULE.alpha_bars[t].view(-1, 1)).sqrt() * x

    # All but the jump to clean data, which adds no noise.
    for i in range(len(UNEVEN) - 2):
        slope, offset, sigma = affine(exact, "large", i)

        assert offset == pytest.approx(0, abs=1e-12)
        assert slope**2 + sigma**2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_noise_is_asked_for_by_index_and_not_for_the_jump_to_clean_data(variance):
    asked = []
    noise = lambda x, i: asked.append(i) or torch.zeros_like(x)  # noqa: E731

    run(DDPM(lambda x, t: x, SCHEDULE, time_grid(4), noise=noise, variance=variance),
        torch.zeros(1, 2))  # fmt: skip

    assert asked == [0, 1, 2]


def test_the_network_is_called_once_a_step_with_whatever_the_chain_is_called_with():
    seen = []

    def model(x, t, *args, **kwargs):
        seen.append((t.dtype, t.tolist(), args, kwargs))
        return x.bfloat16()

    x, step = torch.zeros(2, 3), DDPM(model, SCHEDULE, time_grid(4), noise=SeededNoise(0))
    for i in range(step.num_steps):
        x = step(x, i, "class", scale=2)

    assert x.dtype == torch.float32
    assert [times for _, times, _, _ in seen] == [[t, t] for t in (999, 666, 333, 0)]
    assert all(call[::2] == (torch.int64, ("class",)) for call in seen)
    assert all(kwargs == {"scale": 2} for *_, kwargs in seen)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_is_the_plain_loop_to_the_bit(plan, dtype, variance):
    def make(network):
        return DDPM(network, SCHEDULE, time_grid(6), noise=SeededNoise(3), variance=variance)

    assert_a_chain_is_the_plain_loop(make, plan, dtype)


def test_the_gradient_along_a_chain_is_that_of_finite_differences():
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    grid = time_grid(4, convention="author")
    step = DDPM(lambda x, t: torch.tanh(x @ w), SCHEDULE, grid, noise=SeededNoise(1))
    x_T = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    # atol: the chain amplifies by up to 1/sqrt(alpha_bar(999)) = 157.
    assert torch.autograd.gradcheck(lambda x, w: run(step, x), (x_T, w), atol=1e-4)


@pytest.mark.parametrize("grid", [(), (999,), (999, 500, 500, 0), (0, 500), (1000, 0), (5, -2)])
def test_a_grid_that_does_not_fall_inside_the_schedule_is_refused(grid):
    with pytest.raises(ValueError, match=r"`grid` must hold two .* between -1 and 999.*time_grid"):
        DDPM(model, SCHEDULE, grid, noise=SeededNoise(0))


@pytest.mark.parametrize("grid", [(9.5, 3), torch.tensor([9, 3, -1])])
def test_a_grid_of_other_things_than_integers_is_refused(grid):
    with pytest.raises(TypeError, match="`grid` must hold"):
        DDPM(model, SCHEDULE, grid, noise=SeededNoise(0))


def test_an_unknown_variance_is_refused():
    with pytest.raises(ValueError, match=r"`variance` must be one of .*small.*, got 'learned'"):
        DDPM(model, SCHEDULE, time_grid(4), noise=SeededNoise(0), variance="learned")
