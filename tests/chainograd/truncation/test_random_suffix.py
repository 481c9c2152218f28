"""A random number of last steps: drawn once a call, and from which stream."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from chainograd import CheckpointedChain, binomial, random_suffix
from tests.chainograd.truncation.cut_loop import cut, double, equal
from tests.problems import PLANS, M, Net, Noisy


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


def test_a_random_truncation_is_drawn_once_a_call():
    drawn = []

    def draw(num_steps):
        drawn.append(1 + len(drawn) % num_steps)
        return drawn[-1]

    w = torch.ones((), requires_grad=True)
    chain = CheckpointedChain(lambda x, i: w * x, 4, grad_steps=draw)
    grads = [torch.autograd.grad(chain(torch.ones(())), w)[0].item() for _ in range(3)]

    assert drawn == [1, 2, 3]
    assert grads == [1, 2, 3]
