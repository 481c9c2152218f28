"""Each policy of truncation against its definition, written out as a loop with `detach`."""

import math
from itertools import pairwise

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch._subclasses.fake_tensor import FakeTensorMode

from chainograd import (
    CheckpointedChain,
    LastStepAgain,
    ScaledInput,
    StoppedOutput,
    binomial,
    keep_last,
    meter,
    random_suffix,
)
from chainograd.samplers import DDIM, NoiseSchedule, time_grid
from tests.problems import Net, Noisy, states_of

M = 6
PLANS = {
    "nodes": "nodes",
    "graph": "graph",
    "last 3": keep_last(M, 3),
    "1 slot": binomial(M, slots=1),
    "2 slots": binomial(M, slots=2),
}
SCHEDULE, GRID = NoiseSchedule.linear(), time_grid(M)


def cut(step, steps, x, *args):
    """The plain loop, with the result of every step that is not among ``steps`` detached."""
    states = [x]
    for i in range(M):
        x = step(x, i, *args)
        states.append(x if i in steps else x.detach())
        x = states[-1]
    return states


def equal(got, expected):
    pairs = list(zip(got, expected, strict=True))
    assert [g is None for g, _ in pairs] == [e is None for _, e in pairs]
    assert all(torch.equal(g, e) for g, e in pairs if g is not None)


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


class Watched:
    """Notes which step runs, and whether it may build a graph."""

    def __init__(self, step):
        self.step, self.runs = step, []

    def __call__(self, x, i):
        self.runs.append((i, torch.is_grad_enabled()))
        return self.step(x, i)


# The last K steps, and sets of steps


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("K", [1, 4, M])
def test_the_last_k_steps_are_the_loop_that_is_cut_once(plan, K):
    net, x = Noisy(3, torch.float64), double(2, 3).requires_grad_()

    def loop(x):
        for i in range(M):
            x = net(x if K == M or i != M - K else x.detach(), i)
        return x

    def result(run):
        torch.manual_seed(0)
        loss = run(x).square().sum()
        return loss, *torch.autograd.grad(loss, [x, *net.parameters()], allow_unused=True)

    chain = CheckpointedChain(net, M, plan=plan, grad_steps=K)
    equal(result(chain), result(loop))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("steps", [{5}, {3, 5}, {0, 2, 5}, {0, 1, 4, 5}])
def test_a_set_of_steps_is_the_loop_that_is_cut_after_all_others(plan, steps):
    net, x = Noisy(3, torch.float64), double(2, 3).requires_grad_()

    def result(run):
        torch.manual_seed(0)
        states = run(x)
        seen = [states[i] for i in (1, 4, M) if states[i].requires_grad]
        loss = sum(state.square().sum() for state in seen)
        return loss, *torch.autograd.grad(loss, [x, *net.parameters()], allow_unused=True)

    chain = CheckpointedChain(net, M, plan=plan, grad_steps=steps)
    equal(result(chain.trajectory), result(lambda x: cut(net, steps, x)))


def test_steps_without_a_gradient_run_once_and_without_a_graph():
    step = Watched(Net(3, torch.float64))

    CheckpointedChain(step, M, grad_steps={2, 4, 5})(double(2, 3)).sum().backward()

    assert [run for run in step.runs if run[0] in (0, 1, 3)] == [(0, False), (1, False), (3, False)]
    # No loss is behind step 2, since step 3 is left out: it is not run again either.
    assert step.runs[M:] == [(4, True)]


def test_of_steps_without_a_gradient_no_state_is_kept():
    w = torch.ones(100, requires_grad=True)

    def kept(num_steps, K):
        chain = CheckpointedChain(lambda x, i: x + w, num_steps, grad_steps=K)
        with meter() as reading:
            y = chain(torch.ones(100))
        return reading.live_bytes - y.nbytes

    assert kept(60, 3) == kept(6, 3)
    assert kept(6, 4) - kept(6, 3) == 400  # one node


# A random suffix


def steps_passed(chain, ws):
    """Return which steps the gradient passes, each with a parameter of its own."""
    grads = torch.autograd.grad(chain(torch.ones(())), ws, allow_unused=True)
    return [i for i, g in enumerate(grads) if g is not None]


def one_parameter_a_step():
    ws = [torch.ones((), requires_grad=True) for _ in range(M)]
    return ws, lambda x, i: ws[i] * x


def test_what_a_random_suffix_keeps_is_a_suffix_of_every_length_in_its_range():
    ws, step = one_parameter_a_step()
    chain = CheckpointedChain(step, M, params=ws, grad_steps=random_suffix(2, 4))
    torch.manual_seed(0)

    passed = [steps_passed(chain, ws) for _ in range(40)]

    assert all(kept == list(range(M - len(kept), M)) for kept in passed)
    assert {len(kept) for kept in passed} == {2, 3, 4}


@pytest.mark.parametrize(("least", "most"), [(1, None), (2, 5), (3, 3)])
def test_the_length_of_a_random_suffix_is_uniform(least, most):
    draw = random_suffix(least, most, generator=torch.Generator().manual_seed(0))
    lengths = range(least, (most or M) + 1)

    drawn = [draw(M) for _ in range(600 * len(lengths))]

    assert set(drawn) == set(lengths)
    deviation = math.sqrt(600 * (1 - 1 / len(lengths)))  # of a binomial count
    assert all(abs(drawn.count(K) - 600) <= 4 * deviation for K in lengths)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("named", [False, True], ids=["global", "generator"])
def test_the_draw_comes_before_the_noise_and_is_neither_repeated_nor_undone(plan, named):
    net, x = Noisy(3, torch.float64), double(2, 3).requires_grad_()
    generator = torch.Generator() if named else None

    def result(run):
        torch.manual_seed(3)
        if named:
            generator.manual_seed(3)
        seen = []
        for _ in range(4):  # where one call leaves the streams the next begins
            loss = run(x).square().sum()
            seen += [loss, *torch.autograd.grad(loss, [net.w, net.b])]
        after = torch.rand(2) if generator is None else torch.rand(2, generator=generator)
        return [*seen, after, torch.rand(2)]

    def loop(x):
        K = int(torch.randint(1, M + 1, (), generator=generator))
        return cut(net, range(M - K, M), x)[-1]

    chain = CheckpointedChain(net, M, plan=plan, grad_steps=random_suffix(generator=generator))
    equal(result(chain), result(loop))


def test_a_generator_that_the_steps_draw_from_too_serves_both():
    generator, w = torch.Generator(), torch.ones((), requires_grad=True)

    def step(x, i):
        return w * x + torch.randn((), generator=generator)

    def result(run):
        generator.manual_seed(1)
        grads = [torch.autograd.grad(run(torch.ones(())), w)[0] for _ in range(4)]
        return [*grads, torch.rand(2, generator=generator)]

    def loop(x):
        K = int(torch.randint(1, M + 1, (), generator=generator))
        return cut(step, range(M - K, M), x)[-1]

    draw = random_suffix(generator=generator)
    chain = CheckpointedChain(step, M, generators=[generator], grad_steps=draw)
    equal(result(chain), result(loop))


def test_every_backward_pass_of_a_call_goes_by_the_same_draw():
    ws, step = one_parameter_a_step()
    chain = CheckpointedChain(step, M, params=ws, grad_steps=random_suffix())
    torch.manual_seed(1)

    for _ in range(5):
        y = chain(torch.ones(()))
        passed = [
            [
                g is not None
                for g in torch.autograd.grad(y, ws, retain_graph=True, allow_unused=True)
            ]
            for _ in range(3)
        ]
        assert passed[0] == passed[1] == passed[2]


def test_a_chain_inside_a_step_draws_the_same_when_the_step_runs_again():
    net, x = Net(3, torch.float64), double(2, 3)
    inner = CheckpointedChain(net, M, grad_steps=random_suffix())

    def result(run):
        torch.manual_seed(0)
        return *torch.autograd.grad(run(x).sum(), [net.w, net.b]), torch.rand(1)

    def loop(x):
        for _ in range(4):
            K = int(torch.randint(1, M + 1, ()))
            x = cut(net, range(M - K, M), x)[-1]
        return x

    got = result(CheckpointedChain(lambda x, i: inner(x), 4, plan=binomial(4, slots=2)))
    for g, e in zip(got, result(loop), strict=True):
        torch.testing.assert_close(
            g, e, rtol=1e-12, atol=1e-12
        )  # sums of an inner chain come first


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_without_gradients_the_streams_end_where_they_do_with_them(micro_batch):
    net, x = Noisy(3, torch.float64), double(4, 3)
    chain = CheckpointedChain(net, M, grad_steps=random_suffix(), micro_batch=micro_batch)

    def run():
        torch.manual_seed(0)
        return chain(x).detach(), torch.rand(2)

    with torch.no_grad():
        without = run()
    equal(without, run())


def test_measuring_steps_draws_no_suffix():
    chain, x = CheckpointedChain(Net(3, torch.float64), M, grad_steps=random_suffix()), double(2, 3)
    before = torch.get_rng_state()

    chain.measure(x)

    assert torch.equal(torch.get_rng_state(), before)


# Torch's own forward-mode AD warns that one of its parts is deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
@pytest.mark.parametrize("K", [1, 4, M])
def test_transforms_of_torch_func_are_those_of_the_loop_that_is_cut(K):
    net, x, w = Net(3, torch.float64), double(2, 3), double(3)
    chain = CheckpointedChain(lambda x, i, w: net(x, i) * w, M, grad_steps=K)

    def run(w):
        return chain(x, w).square().sum()

    def loop(w):
        return cut(lambda x, i, w: net(x, i) * w, range(M - K, M), x, w)[-1].square().sum()

    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.hessian):
        got, expected = transform(run)(w), transform(loop)(w)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)  # sums in another order


def test_a_random_suffix_is_drawn_where_tensors_are_fake():
    with FakeTensorMode():
        w = torch.ones((), requires_grad=True)
        chain = CheckpointedChain(lambda x, i: w * x, M, grad_steps=random_suffix())
        chain(torch.ones(3)).sum().backward()

        assert w.grad.shape == ()


@pytest.mark.parametrize("bad", [(0,), (True,), (1.5,), (3, 2), (1, 2.5)])
def test_a_suffix_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match=r"1 <= least <= most, got least="):
        random_suffix(*bad)


@pytest.mark.parametrize("long", [(M + 1,), (1, M + 1)])
def test_a_suffix_longer_than_the_chain_is_refused_when_it_is_drawn(long):
    chain = CheckpointedChain(lambda x, i: x, M, grad_steps=random_suffix(*long))

    with pytest.raises(ValueError, match=rf"least={long[0]}, .*above {M}"):
        chain(torch.ones(1, requires_grad=True))


# The linear path


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
@pytest.mark.parametrize("trained", [range(M), {1, 3, 5}, {0}, {4}])
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

    cut_off = CheckpointedChain(step, M, grad_steps={1, 3, 5})(x)
    passed = CheckpointedChain(drtune(network, {1, 3, 5}), M)(x)

    got = torch.autograd.grad(cut_off.sum(), wanted, allow_unused=True)
    assert got[0] is None
    alone = along_the_linear_path(network, x, {5})[1:]
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
    alphas = [0.0, 0.0, 0.0, 0.5, 0.0, 0.0]
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


# The last step from several noises

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


def test_a_loss_on_the_last_state_keeps_nothing_for_steps_before_a_gap():
    net, x = Net(3, torch.float64), double(2, 3)
    chain = CheckpointedChain(net, 6, plan="graph", grad_steps={0, 1, 3, 5})
    with meter() as reading:
        y = chain(x)
    kept = reading.live_bytes

    with meter() as reading:
        alone = CheckpointedChain(net, 6, plan="graph", grad_steps=1)(x)

    assert kept == reading.live_bytes
    assert torch.equal(y, alone)
