"""Flow matching against closed forms, the methods' order, and diffusers."""

import math
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from chainograd.samplers import FlowEuler, FlowHeun, flow_times
from tests.oracles import DTYPES, PLANS, assert_a_chain_is_the_plain_loop
from tests.problems import plain

MEAN, VARIANCE = 0.7, 0.3
BOTH = pytest.mark.parametrize("sampler", [FlowEuler, FlowHeun])


def run(step, x):
    return plain(step, step.num_steps, x)


def spread(t):
    """Standard deviation of x_t where the data is N(MEAN, VARIANCE)."""
    return math.sqrt((1 - t) ** 2 * VARIANCE + t**2)


def rate(t):
    """Slope of the exact velocity in x."""
    return (t - (1 - t) * VARIANCE) / spread(t) ** 2


def gaussian(x, t):
    """The exact velocity there: E[e - x_0 | x_t]."""
    t = t[0].item()
    return rate(t) * (x - (1 - t) * MEAN) - MEAN


def curved(x, t):
    return torch.sin(2 * x + t.view(-1, 1))


def test_times_run_from_noise_to_data_and_a_shift_keeps_the_ends():
    assert flow_times(5) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    shifted = flow_times(50, shift=3.0)
    assert (len(shifted), shifted[0], shifted[-1]) == (51, 1.0, 0.0)
    assert all(t > s for t, s in pairwise(shifted))


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_times_are_those_of_diffusers(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 20, 20))

    # Theirs are rounded to float32.
    assert flow_times(20, shift=shift) == pytest.approx(scheduler.sigmas.tolist(), rel=3e-7)


@BOTH
@pytest.mark.parametrize("M", [1, 6, 30])
def test_the_sample_of_gaussian_data_is_the_one_worked_out_by_hand(sampler, M):
    times = flow_times(M, shift=2.0)
    x_T = torch.randn(4, 3, dtype=torch.float64)

    x_0 = run(sampler(gaussian, times), x_T)

    # Beside it, the mean moves along a straight line, which both rules follow exactly.
    distance = x_T
    for t, s in pairwise(times):
        ahead = 1 + (s - t) * rate(t)
        second = (rate(t) + rate(s) * ahead) / 2
        distance = distance * (1 + (s - t) * second if sampler is FlowHeun and s else ahead)
    # Up to rounding in float64.
    torch.testing.assert_close(x_0, MEAN + distance, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("sampler", "order"), [(FlowEuler, 1), (FlowHeun, 2)])
def test_the_error_falls_with_the_order_of_the_method(sampler, order, shift):
    x_T = torch.randn(16, 3, dtype=torch.float64)

    def error(M):
        x_0 = run(sampler(gaussian, flow_times(M, shift=shift)), x_T)
        # The exact flow keeps the distance from the mean, in standard deviations.
        return (x_0 - MEAN - spread(0) / spread(1) * x_T).abs().max().item()

    # Of a method of order p, half the step leaves 2^-p of the error; terms of higher order are
    # still 3 % of it at 200 steps. The last step of Heun's, Euler's, takes nothing from that.
    assert math.log2(error(200) / error(400)) == pytest.approx(order, abs=0.05)


def test_euler_is_that_of_diffusers():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 10, 10))
    x_T = torch.randn(2, 3)

    theirs = x_T
    for t in scheduler.timesteps:
        v = curved(theirs, (t / 1000).expand(2))
        theirs = scheduler.step(v, t, theirs).prev_sample

    ours = run(FlowEuler(curved, flow_times(10, shift=3.0)), x_T)
    # Theirs computes in float32 whatever it is given.
    torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=5e-6)


def test_heun_is_that_of_diffusers():
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(10)
    times = list(dict.fromkeys(scheduler.sigmas.tolist()))
    x_T = torch.randn(2, 3)

    theirs = x_T
    for t in scheduler.timesteps:
        v = curved(theirs, (t / 1000).expand(2))
        theirs = scheduler.step(v, t, theirs).prev_sample

    # Theirs computes in float32 whatever it is given.
    ours = run(FlowHeun(curved, times), x_T)
    torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=5e-6)


@BOTH
def test_rising_times_lead_from_data_to_the_noise_it_came_from(sampler):
    x_0 = MEAN + math.sqrt(VARIANCE) * torch.randn(8, 3, dtype=torch.float64)

    def error(M):
        there = run(sampler(curved, flow_times(M)[::-1]), x_0)
        return (run(sampler(curved, flow_times(M)), there) - x_0).abs().max().item()

    assert error(200) < error(50) / 3
    assert error(200) < 0.05


@pytest.mark.parametrize(
    ("sampler", "times"),
    [(FlowEuler, [1.0, 0.75, 0.25]), (FlowHeun, [1.0, 0.75, 0.75, 0.25, 0.25])],
    ids=["euler", "heun"],
)
def test_the_velocity_is_asked_at_each_time_with_whatever_the_chain_is_called_with(sampler, times):
    seen = []

    def velocity(x, t, *args, **kwargs):
        seen.append((t.tolist(), args, kwargs))
        return x / 2

    x, step = torch.zeros(2, 3), sampler(velocity, (1, 0.75, 0.25, 0))
    for i in range(step.num_steps):
        x = step(x, i, "class", scale=2)

    assert seen == [([t, t], ("class",), {"scale": 2}) for t in times]


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_state_keeps_its_dtype_and_times_are_not_rounded_below_float32(sampler, dtype):
    seen = []

    def velocity(x, t):
        seen.append(t[0].item())
        return (x * t.view(-1, 1)).double()

    x = sampler(velocity, (0.999, 0.5))(torch.ones(2, 3, dtype=dtype), 0)

    assert x.dtype == dtype
    assert seen[0] == pytest.approx(0.999, abs=1e-7)


@BOTH
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_is_the_plain_loop_to_the_bit(plan, dtype, sampler):
    def make(network):
        return sampler(network, flow_times(6, shift=3.0))

    assert_a_chain_is_the_plain_loop(make, plan, dtype)


@BOTH
def test_the_gradient_along_a_chain_is_that_of_finite_differences(sampler):
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    step = sampler(lambda x, t: torch.tanh(x @ w), flow_times(4))
    x_T = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x, w: run(step, x), (x_T, w))


@BOTH
@pytest.mark.parametrize(
    "times", [(), (1.0,), (1.0, 1.0), (1.0, 0.2, 0.4), (0.0, 0.6, 0.4, 1.0), (999.0, 0.0),
              (1.0, -0.1), (math.nan, 0.0)],
)  # fmt: skip
def test_times_that_neither_fall_nor_rise_between_0_and_1_are_refused(sampler, times):
    with pytest.raises(ValueError, match=r"`times` must hold two .* between 0 and 1.*flow_times"):
        sampler(curved, times)


def test_times_in_a_tensor_are_refused_rather_than_cut_off_from_their_gradient():
    with pytest.raises(TypeError, match=r"`times` must hold numbers.*tolist.*of your own"):
        FlowEuler(curved, torch.tensor([1.0, 0.5], requires_grad=True))


def test_a_number_of_steps_below_one_is_refused():
    with pytest.raises(ValueError, match="`num_steps` must be at least 1, got 0"):
        flow_times(0)


@pytest.mark.parametrize("shift", [0, -1.0, math.inf, math.nan])
def test_a_shift_out_of_range_is_refused(shift):
    with pytest.raises(ValueError, match="`shift` must be positive and finite, got"):
        flow_times(5, shift=shift)
