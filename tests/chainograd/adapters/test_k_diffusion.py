"""k-diffusion's samplers as steps: each step is the sampler's own."""

from itertools import count

import pytest
import torch

from chainograd import CheckpointedChain
from chainograd.adapters.k_diffusion import k_diffusion_step
from chainograd.samplers import SeededNoise
from tests.chainograd.adapters.toy_samplers import (
    SAMPLERS,
    SIGMAS,
    X_T,
    Denoiser,
    M,
    deterministic,
    sample_and_gradients,
    sample_dpmpp_sde,
    sample_euler_ancestral,
    sample_heun,
)
from tests.problems import plain


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_chain_is_the_sampler_run_in_one_go_to_the_bit(name):
    fn, options = SAMPLERS[name]
    model = Denoiser()
    chain = CheckpointedChain(k_diffusion_step(fn, model, SIGMAS, **options), M)

    ours = sample_and_gradients(lambda x, c: chain(x, c=c), model)

    whole = sample_and_gradients(
        lambda x, c: fn.__wrapped__(model, x, SIGMAS, extra_args={"c": c}, **options), model
    )
    assert all(map(torch.equal, ours, whole))
    assert all(g.abs().max() > 0 for g in ours)


def test_churn_is_spread_over_all_steps_although_each_step_is_cut_out():
    seen = []
    step = k_diffusion_step(
        sample_heun, lambda x, sigma: seen.append(sigma[0]) or x, SIGMAS, s_churn=1.5
    )

    step(X_T, 0)

    assert seen[0] == SIGMAS[0] * (1 + 1.5 / M)


@pytest.mark.parametrize(("fn", "draws"), [(sample_euler_ancestral, 1), (sample_dpmpp_sde, 2)])
def test_noise_by_index_is_drawn_with_the_step_s_index_and_again_beyond_the_last(fn, draws):
    model, noise, calls = Denoiser(), SeededNoise(3), count()

    def in_order(sigma, following):
        i, k = divmod(next(calls), draws)
        return noise(X_T, i + k * M)

    step = k_diffusion_step(fn, model, SIGMAS, noise=noise)

    whole = fn(model, X_T, SIGMAS, noise_sampler=in_order)
    assert torch.equal(CheckpointedChain(step, M)(X_T), whole)


@pytest.mark.parametrize("fn", [sample_euler_ancestral, sample_dpmpp_sde])
def test_a_step_with_noise_by_index_is_the_same_in_any_order(fn):
    step = k_diffusion_step(fn, Denoiser(), SIGMAS, noise=SeededNoise(3))
    first = [step(X_T, i) for i in range(M)]

    again = [step(X_T, i) for i in reversed(range(M))]

    assert all(map(torch.equal, first, reversed(again)))
    assert not torch.equal(first[0], first[1])


def test_the_two_draws_of_a_step_are_of_independent_noise():
    asked = []
    step = k_diffusion_step(
        sample_dpmpp_sde, Denoiser(), SIGMAS, noise=lambda x, i: asked.append(i) or x
    )

    plain(step, M, X_T)

    assert asked == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10]  # and none for the step to level 0


def test_arguments_of_the_chain_come_before_those_of_every_step():
    seen = []
    model = lambda x, sigma, **extra: seen.append(extra) or x  # noqa: E731
    step = k_diffusion_step(sample_heun, model, SIGMAS, extra_args={"a": 1, "b": 2})

    step(X_T, M - 1, b=3)

    assert seen == [{"a": 1, "b": 3}]


def test_noise_levels_that_require_a_gradient_get_that_of_the_plain_loop():
    sigmas = SIGMAS.double().requires_grad_()
    x_T = X_T.double()
    step = k_diffusion_step(sample_heun, Denoiser().double(), sigmas)

    x_0 = CheckpointedChain(step, M)(x_T)
    (ours,) = torch.autograd.grad(x_0.square().sum(), sigmas)

    x_0 = sample_heun.__wrapped__(step.model, x_T, sigmas)
    (whole,) = torch.autograd.grad(x_0.square().sum(), sigmas)
    # The whole run adds up the uses of a level in another order.
    torch.testing.assert_close(ours, whole, rtol=1e-12, atol=0)
    assert (ours[:-1] != 0).all()


def test_a_sampler_is_silent():
    seen = []

    def sampler(model, x, sigmas, disable=None):
        seen.append(disable)
        return model(x, sigmas[:1])

    k_diffusion_step(sampler, Denoiser(), SIGMAS[:2])(X_T, 0)

    assert seen == [True] * 3  # in one run of the trial, in its step, and here


def test_a_trial_leaves_the_caller_s_random_stream_alone():
    model = Denoiser()
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)

    k_diffusion_step(sample_heun, model, SIGMAS)

    assert torch.equal(torch.randn(3), expected)


def test_a_sampler_that_adds_noise_is_refused_without_noise_by_index():
    with pytest.raises(ValueError, match=r"sample_euler_ancestral adds noise.*SeededNoise.*eta=0"):
        k_diffusion_step(sample_euler_ancestral, Denoiser(), SIGMAS)


def test_a_sampler_told_to_add_no_noise_needs_none():
    step = k_diffusion_step(sample_euler_ancestral, Denoiser(), SIGMAS, eta=0)

    zeros = lambda sigma, following: torch.zeros(())  # noqa: E731
    whole = sample_euler_ancestral(step.model, X_T, SIGMAS, eta=0, noise_sampler=zeros)
    assert torch.equal(plain(step, M, X_T), whole)


@pytest.mark.parametrize(
    ("fn", "options", "error", "match"),
    [
        (sample_dpmpp_sde, {"noise": SeededNoise(0), "noise_sampler": deterministic},
         ValueError, "Pass one of them"),
        (sample_heun, {"noise": SeededNoise(0)}, ValueError, "sample_heun takes no noise"),
        (sample_heun, {"callback": print}, ValueError, "`chain.trajectory`"),
        (sample_heun, {"eta": 0.5}, TypeError, "sample_heun takes no eta. It takes model, x"),
        ("sample_heun", {}, TypeError, "`fn` must be a sampler function"),
    ],
    ids=["two noises", "no noise taken", "callback", "unknown option", "no function"],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(fn, options, error, match):
    with pytest.raises(error, match=match):
        k_diffusion_step(fn, Denoiser(), SIGMAS, **options)


@pytest.mark.parametrize(
    ("sigmas", "error"), [([1.0, 0.0], TypeError), (SIGMAS[:1], ValueError), (X_T, ValueError)]
)
def test_noise_levels_that_are_no_vector_are_refused(sigmas, error):
    with pytest.raises(error, match="`sigmas` must be a"):
        k_diffusion_step(sample_heun, Denoiser(), sigmas)


@pytest.mark.parametrize("i", [-1, M])
def test_a_step_beyond_the_noise_levels_is_refused(i):
    step = k_diffusion_step(sample_heun, Denoiser(), SIGMAS)

    with pytest.raises(IndexError, match=f"Step {i} .* 6 steps"):
        step(X_T, i)
