"""Other predictions and velocities, as the samplers take them."""

import diffusers
import pytest
import torch

from chainograd import CheckpointedChain
from chainograd.adapters.predictions import epsilon_from, from_data_at_one
from chainograd.samplers import (
    DDIM,
    FlowEuler,
    FlowHeun,
    NoiseSchedule,
    flow_times,
    time_grid,
)
from tests.problems import plain

SCHEDULE = NoiseSchedule.linear()
MEAN, VARIANCE = 0.7, 0.3
IMAGES = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def epsilon(x, t):
    a = SCHEDULE.alpha_bars[t].view(-1, 1)
    return (1 - a).sqrt() * (x - a.sqrt() * MEAN) / (a * VARIANCE + 1 - a)


def sample(x, t):
    a = SCHEDULE.alpha_bars[t].view(-1, 1)
    return MEAN + a.sqrt() * VARIANCE * (x - a.sqrt() * MEAN) / (a * VARIANCE + 1 - a)


def v(x, t):
    a = SCHEDULE.alpha_bars[t].view(-1, 1)
    return a.sqrt() * epsilon(x, t) - (1 - a).sqrt() * sample(x, t)


def velocity(x, t):
    """On the straight path, x_t = (1 - t) x_0 + t e."""
    t = t.view(-1, 1)
    distance = (x - (1 - t) * MEAN) / ((1 - t) ** 2 * VARIANCE + t**2)
    return t * distance - (MEAN + (1 - t) * VARIANCE * distance)


PREDICTIONS = {"epsilon": epsilon, "sample": sample, "v": v, "velocity": velocity}


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_of_gaussian_data_stands_for_the_noise_known_in_closed_form(prediction):
    t = torch.tensor([0, 3, 250, 600, 999])
    x = torch.randn(5, 4, dtype=torch.float64)

    found = epsilon_from(PREDICTIONS[prediction], SCHEDULE, prediction=prediction)(x, t)

    # At t = 0 a rounding of x_0 is multiplied by 100.
    torch.testing.assert_close(found, epsilon(x, t), rtol=1e-11, atol=1e-11)


def test_the_velocity_of_gaussian_data_moves_noise_to_data():
    step = FlowHeun(velocity, flow_times(100))
    x_T = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)

    x_0 = plain(step, 100, x_T)

    # Heun's error of second order, in steps of 1/100.
    torch.testing.assert_close(x_0, MEAN + VARIANCE**0.5 * x_T, rtol=0, atol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_draws_the_same_sample_whatever_the_network_predicts(prediction):
    x_T = torch.randn(3, 2, dtype=torch.float64)
    model = epsilon_from(PREDICTIONS[prediction], SCHEDULE, prediction=prediction)

    found = plain(DDIM(model, SCHEDULE, time_grid(20)), 20, x_T)

    # 1/sqrt(alpha_bar(999)) = 157 times the rounding of one step.
    expected = plain(DDIM(epsilon, SCHEDULE, time_grid(20)), 20, x_T)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("prediction", "theirs"),
    [("epsilon", "epsilon"), ("v", "v_prediction"), ("sample", "sample")],
)
def test_a_step_with_each_prediction_is_that_of_diffusers(prediction, theirs):
    scheduler = diffusers.DDIMScheduler(
        timestep_spacing="trailing", clip_sample=False, prediction_type=theirs
    )
    scheduler.set_timesteps(20)
    schedule = NoiseSchedule.from_betas(scheduler.betas)
    x = torch.randn(2, 3, dtype=torch.float64)
    model = lambda x, t: torch.tanh(x + t[:, None] / 1000)  # noqa: E731

    ours = DDIM(epsilon_from(model, schedule, prediction=prediction), schedule, (499, 449))(x, 0)

    t = torch.tensor(499)
    expected = scheduler.step(model(x, t.expand(2)), t, x).prev_sample
    # Their alpha-bars are float32 products.
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_velocity_is_asked_at_times_between_data_and_noise():
    seen = []
    model = epsilon_from(
        lambda x, t: seen.append(t) or x, SCHEDULE, prediction="velocity"
    )  # fmt: skip

    model(torch.randn(3, 2), torch.tensor([0, 500, 999]))

    (times,) = seen
    assert times.shape == (3,)
    assert times.dtype == torch.float32
    assert (times.diff() > 0).all()
    assert 0 < times[0] < 0.01
    assert 0.99 < times[-1] < 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_the_chain_is_called_with_reaches_the_network(prediction):
    seen = []

    def model(x, t, *args, **kwargs):
        seen.append((args, kwargs))
        return x

    epsilon_from(model, SCHEDULE, prediction=prediction)(
        torch.zeros(1, 2), torch.tensor([5]), "class", scale=2
    )

    assert seen == [(("class",), {"scale": 2})]


@pytest.mark.parametrize("prediction", ["v", "sample", "velocity"])
def test_a_network_of_lower_precision_does_not_lower_the_prediction(prediction):
    model = epsilon_from(lambda x, t: x.bfloat16(), SCHEDULE, prediction=prediction)

    assert model(torch.randn(1, 2), torch.tensor([5])).dtype == torch.float32


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gradients_pass_through_a_prediction(prediction):
    w = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([100, 500, 900])

    def predicted(x, w):
        return epsilon_from(lambda x, t: torch.tanh(x @ w), SCHEDULE, prediction=prediction)(x, t)

    assert torch.autograd.gradcheck(predicted, (x, w))


def test_an_unknown_prediction_is_refused():
    with pytest.raises(
        ValueError, match=r"`prediction` must be one of .*'velocity'.*, got 'score'"
    ):
        epsilon_from(epsilon, SCHEDULE, prediction="score")


STEPS = 4  # a power of two, so that 1 - i / STEPS is exact
NOISE = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Velocity(torch.nn.Module):
    """Of the other libraries: s is 0 at noise and 1 at data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w = torch.nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def forward(self, x, s, c=0.0):
        return torch.tanh(x @ self.w + c) * (1 + s[:, None])


def their_euler(u, x, **kwargs):
    for i in range(STEPS):
        x = x + u(x, torch.full((len(x),), i / STEPS, dtype=x.dtype), **kwargs) / STEPS
    return x


def their_heun(u, x, **kwargs):
    """Heun's method, whose last step is Euler's as in `FlowHeun`."""
    for i in range(STEPS):
        s, following = (torch.full((len(x),), j / STEPS, dtype=x.dtype) for j in (i, i + 1))
        slope = u(x, s, **kwargs)
        if i + 1 < STEPS:
            slope = (slope + u(x + slope / STEPS, following, **kwargs)) / 2
        x = x + slope / STEPS
    return x


@pytest.mark.parametrize(("sampler", "theirs"), [(FlowEuler, their_euler), (FlowHeun, their_heun)])
def test_the_chain_and_its_gradients_are_those_of_the_library_s_own_loop(sampler, theirs):
    u = Velocity()
    chain = CheckpointedChain(sampler(from_data_at_one(u), flow_times(STEPS)), STEPS)

    def sample_and_gradients(run):
        x, c = NOISE.clone().requires_grad_(), torch.ones(3, dtype=NOISE.dtype, requires_grad=True)
        x_0 = run(x, c)
        return x_0, *torch.autograd.grad(x_0.square().sum(), [x, c, u.w])

    ours = sample_and_gradients(lambda x, c: chain(x, c=c))

    expected = sample_and_gradients(lambda x, c: theirs(u, x, c=c))
    # Not to the bit: (s - t) times a negated velocity is divided by STEPS in another order.
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_a_straight_path_ends_at_its_data_point():
    point = torch.tensor([7.0, -1.0, 0.5], dtype=torch.float64)
    straight = lambda x, s: (point - x) / (1 - s[:, None])  # noqa: E731

    step = FlowEuler(from_data_at_one(straight), flow_times(6, shift=3.0))

    torch.testing.assert_close(plain(step, 6, NOISE), point.expand(5, 3), rtol=1e-13, atol=1e-13)


def test_a_network_that_takes_its_time_first_gives_the_same():
    u = Velocity()
    t = torch.rand(5, dtype=torch.float64)

    turned = from_data_at_one(lambda s, x, *args: u(x, s, *args), order="t, x")

    assert torch.equal(turned(NOISE, t, 0.5), from_data_at_one(u)(NOISE, t, 0.5))


def test_a_network_that_counts_to_999_is_asked_so():
    seen = []
    v = from_data_at_one(lambda x, s: seen.append(s.tolist()) or x, scale=999)

    v(NOISE, torch.tensor([1.0, 0.0]))

    assert seen == [[0.0, 999.0]]


def test_an_unknown_order_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"`order` must be one of .*'tx'.*lambda x, t"):
        from_data_at_one(Velocity(), order="tx")
