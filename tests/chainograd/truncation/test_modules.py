"""Each published policy of truncation against its definition: a loop with `detach`."""

import math
from itertools import pairwise

import pytest
import torch
import torch.autograd.forward_ad as fwAD

from chainograd import CheckpointedChain, LastStepAgain, ScaledInput, StoppedOutput, binomial, meter
from chainograd.samplers import DDIM, NoiseSchedule, time_grid
from tests.chainograd.truncation.cut_loop import double, equal
from tests.problems import PLANS, M, Net, states_of

SCHEDULE, GRID = NoiseSchedule.linear(), time_grid(M)


class Epsilon(torch.nn.Module):
    """A small network of x and t."""

    def __init__(self):
        super().__init__()
        self.net = Net(3, torch.float64)

    def forward(self, x, t):
        return self.net(x, int(t[0]) / 100)


def coefficients():
    """Return a and b of every DDIM step x_s = a x + b epsilon."""
    for t, s in pairwise(GRID):
        a_t, a_s = SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(s)
        a = math.sqrt(a_s / a_t)
        yield a, math.sqrt(1 - a_s) - a * math.sqrt(1 - a_t)


def along_the_linear_path(network, x, trained):
    """Return the gradients of the sum of x_0 by their closed forms."""
    passed = [(a, b) for a, b in coefficients()]
    states = states_of(DDIM(network, SCHEDULE, GRID), M, x.detach())
    by_x = math.prod(a for a, _ in passed)
    by_parameters = [torch.zeros_like(p) for p in network.parameters()]
    for i in trained:
        epsilon = network(states[i].detach(), torch.full((2,), GRID[i]))
        factor = passed[i][1] * math.prod(a for a, _ in passed[i + 1 :])
        grads = torch.autograd.grad(factor * epsilon.sum(), list(network.parameters()))
        by_parameters = [p + g for p, g in zip(by_parameters, grads, strict=True)]
    return [torch.full_like(x, by_x), *by_parameters]


def drtune(network, trained):
    """Return the step that trains a network in some steps, along the linear path of all of them."""
    taught = DDIM(ScaledInput(network, scale=0), SCHEDULE, GRID)
    still = DDIM(StoppedOutput(network), SCHEDULE, GRID)
    return lambda x, i: (taught if i in trained else still)(x, i)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("trained", [range(M), {1, 3, 6}, {0}, {4}])
def test_drtune_gives_the_product_of_the_linear_coefficients_and_each_trained_steps_own(
    plan, trained
):
    torch.manual_seed(0)
    network, x = Epsilon(), double(2, 3).requires_grad_()
    wanted = [x, *network.parameters()]

    y = CheckpointedChain(drtune(network, trained), M, plan=plan)(x)
    got = torch.autograd.grad(y.sum(), wanted)

    for g, e in zip(got, along_the_linear_path(network, x, trained), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-13)  # ten products, rounded each
    with torch.no_grad():
        assert torch.equal(y, states_of(DDIM(network, SCHEDULE, GRID), M, x)[-1])


def test_a_set_of_steps_ends_the_linear_path_where_a_stopped_output_does_not():
    torch.manual_seed(0)
    network, x = Epsilon(), double(2, 3).requires_grad_()
    step = DDIM(ScaledInput(network, scale=0), SCHEDULE, GRID)
    wanted = [x, *network.parameters()]

    cut_off = CheckpointedChain(step, M, grad_steps={1, 3, 6})(x)
    passed = CheckpointedChain(drtune(network, {1, 3, 6}), M)(x)

    got = torch.autograd.grad(cut_off.sum(), wanted, allow_unused=True)
    assert got[0] is None
    alone = along_the_linear_path(network, x, {6})[1:]
    for g, e in zip(got[1:], alone, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-13)
    assert all(
        (g - e).abs().max() > 1e-3
        for g, e in zip(torch.autograd.grad(passed.sum(), wanted[1:]), alone, strict=True)
    )


def test_trained_steps_can_be_chosen_anew_at_each_call():
    network, x = Epsilon(), double(2, 3).requires_grad_()
    taught = DDIM(ScaledInput(network, scale=0), SCHEDULE, GRID)
    still = DDIM(StoppedOutput(network), SCHEDULE, GRID)
    chain = CheckpointedChain(lambda x, i, chosen: (taught if i in chosen else still)(x, i), M)

    for chosen in (range(0, M, 2), range(1, M, 3)):
        got = torch.autograd.grad(chain(x, chosen).sum(), [x, *network.parameters()])
        for g, e in zip(got, along_the_linear_path(network, x, chosen), strict=True):
            torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0, 2.0])
def test_a_scaled_input_scales_the_networks_part_of_the_jacobian(alpha):
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x = double().requires_grad_()
    model = ScaledInput(lambda x: w * x, scale=alpha)

    got = torch.autograd.grad(CheckpointedChain(lambda x, i: 0.9 * x + model(x), M)(x), [x, w])

    full, part = 0.9 + 0.3, 0.9 + alpha * 0.3
    by_w = sum(full**i * part ** (M - 1 - i) for i in range(M)) * x.item()
    assert got[0].item() == pytest.approx(part**M, rel=1e-14)
    assert got[1].item() == pytest.approx(by_w, rel=1e-14)


def test_flowbps_bridge_lets_one_step_see_those_before_it_in_part():
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    alphas = [0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0]
    models = [ScaledInput(lambda x: w * x, scale=alpha) for alpha in alphas]

    y = CheckpointedChain(lambda x, i: x + models[i](x), M)(torch.ones((), dtype=torch.float64))
    (got,) = torch.autograd.grad(y, w)

    # Steps 0 … 2 pass step 3 with 1 + 0.5 w, every other step with 1.
    expected = sum(1.3**i * (1 + 0.5 * 0.3 if i < 3 else 1) for i in range(M))
    assert got.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_a_scaled_input_leaves_every_value_as_it_is(scale, dtype):
    x = torch.randn(1000).to(dtype).requires_grad_()
    seen = {}

    def model(state, t):
        seen.update(state)
        return state["x"] * 2

    y = ScaledInput(model, scale=scale)({"x": x, "ids": torch.arange(3), "name": "a"}, 5)

    assert torch.equal(y, 2 * x)
    assert seen["ids"].tolist() == [0, 1, 2]
    assert seen["name"] == "a"


def test_a_scaled_input_of_one_is_the_model():
    net, x = Net(3, torch.float64), double(2, 3).requires_grad_()
    scaled = ScaledInput(net, scale=1)

    def gradients(step):
        y = CheckpointedChain(step, M)(x)
        return torch.autograd.grad(y.sum(), [x, net.w, net.b])

    equal(gradients(scaled), gradients(net))


# Torch's own forward-mode AD warns that one of its parts is deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
def test_tangents_are_scaled_and_stopped_as_gradients_are():
    with fwAD.dual_level():
        x = fwAD.make_dual(torch.zeros(()), torch.ones(()))
        tangents = [
            fwAD.unpack_dual(3 * x + model(x)).tangent.item()
            for model in (ScaledInput(torch.tanh, scale=0.25), ScaledInput(torch.tanh, scale=0),
                          StoppedOutput(torch.tanh))
        ]  # fmt: skip

    assert tangents == [3.25, 3.0, 3.0]


def test_a_stopped_output_leaves_no_graph_behind():
    net = torch.nn.Sequential(torch.nn.Linear(3, 300), torch.nn.Tanh(), torch.nn.Linear(300, 3))
    packed = []

    with torch.autograd.graph.saved_tensors_hooks(packed.append, lambda t: t):
        y = StoppedOutput(net)(torch.ones(2, 3, requires_grad=True))

    assert packed == []
    assert not y.requires_grad


def test_one_step_and_the_sample_it_predicts_is_a_grid_that_ends_early():
    network, x = Epsilon(), double(2, 3)
    i = 3
    early = DDIM(network, SCHEDULE, (*GRID[: i + 1], -1))

    y = CheckpointedChain(early, early.num_steps, grad_steps=1)(x)
    got = torch.autograd.grad(y.square().sum(), list(network.parameters()))

    with torch.no_grad():
        x_t = states_of(DDIM(network, SCHEDULE, GRID), M, x)[i]
    a = SCHEDULE.alpha_bar(GRID[i])
    epsilon = network(x_t, torch.full((2,), GRID[i]))
    predicted = (x_t - math.sqrt(1 - a) * epsilon) / math.sqrt(a)
    expected = torch.autograd.grad(predicted.square().sum(), list(network.parameters()))
    equal([y, *got], [predicted, *expected])


ALPHA = math.sqrt(SCHEDULE.alpha_bar(GRID[-2]))
SIGMA = math.sqrt(1 - SCHEDULE.alpha_bar(GRID[-2]))


def noised_again(step, zs, x_0, **options):
    again = LastStepAgain(step, M - 1, alpha=ALPHA, sigma=SIGMA, noise=lambda x_0, k: zs[k])
    return [x for _, x in CheckpointedChain(again, len(zs), **options).trajectory((x_0, x_0))]


@pytest.mark.parametrize("plan", ["nodes", "graph", binomial(4, slots=2)], ids=str)
@pytest.mark.parametrize("own", [False, True], ids=["others", "and its own"])
def test_the_mean_gradient_over_noises_is_that_of_one_last_step_each(plan, own):
    torch.manual_seed(0)
    network, x_T, zs = Epsilon(), double(2, 3), double(4, 2, 3)
    step, parameters = DDIM(network, SCHEDULE, GRID), list(network.parameters())

    x_0 = CheckpointedChain(step, M, grad_steps=1)(x_T)
    samples = noised_again(step, zs, x_0, plan=plan)[0 if own else 1 :]
    loss = sum(x.square().sum() for x in samples) / len(samples)
    got = torch.autograd.grad(loss, parameters)

    x = torch.stack([ALPHA * x_0.detach() + SIGMA * z for z in zs])
    if own:
        with torch.no_grad():
            x = torch.cat([states_of(step, M, x_T)[M - 1][None], x])
    each = [torch.autograd.grad(step(x_1, M - 1).square().sum(), parameters) for x_1 in x]
    for g, e in zip(got, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(g, sum(e) / len(x), rtol=1e-12, atol=1e-13)  # another order


def test_noises_whose_squares_are_one_give_the_expected_gradient():
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x_0 = torch.tensor(1.3, dtype=torch.float64)

    samples = noised_again(lambda x, i: w * x, [-1.0, 1.0], x_0)[1:]
    loss = sum(x.square() for x in samples) / 2
    (got,) = torch.autograd.grad(loss, w)

    # d/dw E (w (alpha x_0 + sigma z))^2 with E z = 0 and E z^2 = 1
    expected = 2 * 0.7 * (ALPHA**2 * 1.3**2 + SIGMA**2)
    assert got.item() == pytest.approx(expected, rel=1e-14)


def test_the_variance_of_the_gradient_falls_with_the_number_of_noises():
    torch.manual_seed(0)
    w = torch.ones(40_000, requires_grad=True)  # as many estimates at once

    def variance(n):
        samples = noised_again(lambda x, i: w * x, torch.randn(n, len(w)), torch.ones(len(w)))[1:]
        (grads,) = torch.autograd.grad(sum(x.square().sum() for x in samples) / n, w)
        return grads.var().item()

    # The spread of a variance over 40,000 estimates is under 2 %, of a ratio under 3 %.
    assert variance(1) / variance(4) == pytest.approx(4, rel=0.1)


def test_no_gradient_reaches_the_sampling_from_noises_on_the_last_step():
    x_0 = torch.ones(3, requires_grad=True)
    w = torch.ones((), requires_grad=True)

    samples = noised_again(lambda x, i: w * x, torch.randn(2, 3), x_0)[1:]

    by_x, by_w = torch.autograd.grad(sum(samples).sum(), [x_0, w], allow_unused=True)
    assert by_x is None or not by_x.any()
    assert by_w is not None


def test_more_noises_take_no_more_memory_than_their_samples():
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 2048), torch.nn.Tanh(), torch.nn.Linear(2048, 64)
    )
    x_0 = torch.randn(16, 64)

    def peak(n):
        network.zero_grad()
        zs = torch.randn(n, 16, 64)
        with meter() as reading:
            sum(x.sum() for x in noised_again(lambda x, i: network(x), zs, x_0)[1:]).backward()
        return reading.peak_bytes

    graph = 16 * 2048 * 4
    assert peak(6) - peak(2) < 0.5 * graph
    assert peak(2) > graph


@pytest.mark.parametrize(
    "bad",
    [{"index": -1}, {"index": 1.0}, {"sigma": 0.0}, {"sigma": -1.0}, {"alpha": -0.1}],
    ids=str,
)
def test_levels_that_cannot_be_are_refused_by_name(bad):
    given = {"index": 4, "alpha": 0.5, "sigma": 0.5, **bad}
    (name,) = bad

    with pytest.raises(ValueError, match=f"`{name}`"):
        LastStepAgain(lambda x, i: x, given.pop("index"), noise=torch.randn, **given)
