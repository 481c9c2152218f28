"""k-diffusion's samplers, cut into steps: each step is the sampler's own, or it is refused.

The samplers here have k-diffusion's signature and conventions, and are decorated as there. The
tests at the end use the real ones where the library is installed.
"""

import math
from itertools import count, pairwise

import pytest
import torch

from chainograd import CheckpointedChain
from chainograd.adapters.k_diffusion import k_diffusion_step
from chainograd.samplers import SeededNoise
from tests.problems import plain

SIGMAS = torch.tensor([9.0, 5.0, 2.5, 1.0, 0.4, 0.1, 0.0])
M = len(SIGMAS) - 1
X_T = 9 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Denoiser(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        )

    def forward(self, x, sigma, c=0.0):
        return 2 * self.net(x / (1 + sigma[:, None])) + c


def slope(model, x, sigma, extra_args):
    return (x - model(x, sigma.expand(len(x)), **(extra_args or {}))) / sigma


def split_noise(sigma, following, eta):
    """Return the level to go down to and the noise to add, so that the variances add up."""
    up = eta * following * (1 - (following / sigma) ** 2).clamp(min=0).sqrt()
    return (following**2 - up**2).sqrt(), up


@torch.no_grad()
def sample_heun(model, x, sigmas, extra_args=None, callback=None, disable=None, s_churn=0.0):
    steps = len(sigmas) - 1
    for sigma, following in pairwise(sigmas):
        gamma = min(s_churn / steps, math.sqrt(2) - 1)
        z = torch.randn_like(x)  # drawn with no churn, too
        level = (1 + gamma) * sigma
        if gamma:
            x = x + (level**2 - sigma**2).sqrt() * z
        d = slope(model, x, level, extra_args)
        ahead = x + (following - level) * d
        if following > 0:
            d = (d + slope(model, ahead, following, extra_args)) / 2
            ahead = x + (following - level) * d
        x = ahead
    return x


@torch.no_grad()
def sample_euler_ancestral(
    model, x, sigmas, extra_args=None, callback=None, disable=None,
    eta=1.0, s_noise=1.0, noise_sampler=None,
):  # fmt: skip
    for sigma, following in pairwise(sigmas):
        down, up = split_noise(sigma, following, eta)
        x = x + (down - sigma) * slope(model, x, sigma, extra_args)
        if following > 0:
            x = x + s_noise * up * noise_sampler(sigma, following)
    return x


@torch.no_grad()
def sample_dpmpp_sde(
    model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, noise_sampler=None
):
    """Adds noise twice a step, the first time half-way."""
    for sigma, following in pairwise(sigmas):
        d = slope(model, x, sigma, extra_args)
        if following == 0:
            x = x - sigma * d
            continue
        middle = (sigma * following).sqrt()
        down, up = split_noise(sigma, middle, eta)
        half_way = x + (down - sigma) * d + up * noise_sampler(sigma, middle)
        down, up = split_noise(sigma, following, eta)
        d = slope(model, half_way, middle, extra_args)
        x = x + (down - sigma) * d + up * noise_sampler(sigma, following)
    return x


@torch.no_grad()
def with_a_memory(model, x, sigmas, extra_args=None, callback=None, disable=None):
    previous = None
    for sigma, following in pairwise(sigmas):
        d = slope(model, x, sigma, extra_args)
        x = x + (following - sigma) * (d if previous is None else 1.5 * d - 0.5 * previous)
        previous = d
    return x


def deterministic(sigma, following):
    """Noise that is a function of the two levels."""
    key = round(1e4 * float(sigma)) + round(1e8 * float(following))
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(key))


SAMPLERS = {
    "heun": (sample_heun, {}),
    "churned": (sample_heun, {"s_churn": 1.5}),
    "ancestral": (sample_euler_ancestral, {"noise_sampler": deterministic}),
    "sde": (sample_dpmpp_sde, {"noise_sampler": deterministic, "eta": 0.8}),
}


def sample_and_gradients(run, model):
    """Run from one seed, as heun draws; return the sample and the gradients of a loss on it."""
    x_T, c = X_T.clone().requires_grad_(), torch.ones(3, requires_grad=True)
    torch.manual_seed(5)
    x_0 = run(x_T, c)
    return x_0, *torch.autograd.grad(x_0.square().sum(), [x_T, c, *model.parameters()])


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


def test_churn_is_spread_over_all_steps_although_each_sees_but_itself():
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


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sample_lms", "derivatives of earlier steps"),
        ("sample_dpmpp_2m", "DPMSolver2M"),
        ("sample_dpmpp_2m_sde", "denoised sample of the step before"),
        ("sample_dpmpp_3m_sde", "two steps before"),
        ("sample_dpm_adaptive", "chooses its noise levels"),
        ("sample_dpm_fast", "chooses its noise levels"),
    ],
)
def test_samplers_that_remember_or_choose_are_refused_by_name_with_the_reason(name, why):
    def sampler(model, x, sigmas):
        return x

    sampler.__name__ = name

    with pytest.raises(ValueError, match=rf"`fn` {name} .*{why}"):
        k_diffusion_step(sampler, Denoiser(), SIGMAS)


def test_a_sampler_of_another_name_that_remembers_gives_itself_away():
    with pytest.raises(
        ValueError, match=r"with_a_memory returns another result .* carries it in its"
    ):
        k_diffusion_step(with_a_memory, Denoiser(), SIGMAS)


def test_a_sampler_that_turns_gradients_off_inside_is_refused():
    def sampler(model, x, sigmas):
        with torch.no_grad():
            return sample_heun.__wrapped__(model, x, sigmas)

    with pytest.raises(ValueError, match="sampler turns gradients off inside"):
        k_diffusion_step(sampler, Denoiser(), SIGMAS)


def test_a_sampler_that_needs_more_than_a_denoiser_is_refused_with_what_it_met():
    def sampler(model, x, sigmas):
        return x + model.inner_model.sigmas[0]

    with pytest.raises(ValueError, match=r"could not be tried .*AttributeError.*inner_model"):
        k_diffusion_step(sampler, Denoiser(), SIGMAS)


def test_a_sampler_that_is_given_no_sigmas_is_refused():
    def sampler(model, x, sigma_min, sigma_max, n):
        return x

    with pytest.raises(ValueError, match="sampler must take `sigmas`"):
        k_diffusion_step(sampler, Denoiser(), SIGMAS)


def test_noise_that_is_no_value_is_refused_with_the_way_out():
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


# The library itself

EXACT = {
    "sample_euler": {"s_churn": 1.5},
    "sample_heun": {"s_churn": 1.5},
    "sample_dpm_2": {"s_churn": 1.5},
    "sample_euler_ancestral": {"noise_sampler": deterministic},
    "sample_dpm_2_ancestral": {"noise_sampler": deterministic},
    "sample_dpmpp_2s_ancestral": {"noise_sampler": deterministic},
    "sample_dpmpp_sde": {"noise_sampler": deterministic},
}
WITH_A_MEMORY = ["sample_lms", "sample_dpmpp_2m", "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde"]


@pytest.fixture
def library():
    return pytest.importorskip("k_diffusion.sampling", reason="k-diffusion is not installed")


@pytest.mark.parametrize("name", EXACT)
def test_a_sampler_of_the_library_is_cut_exactly(library, name):
    fn, options, model = getattr(library, name), EXACT[name], Denoiser()
    chain = CheckpointedChain(k_diffusion_step(fn, model, SIGMAS, **options), M)

    ours = sample_and_gradients(lambda x, c: chain(x, c=c), model)

    whole = sample_and_gradients(
        lambda x, c: fn.__wrapped__(model, x, SIGMAS, extra_args={"c": c}, disable=True, **options),
        model,
    )
    assert all(map(torch.equal, ours, whole))


@pytest.mark.parametrize("name", WITH_A_MEMORY)
def test_a_sampler_of_the_library_with_a_memory_is_refused_whatever_its_name(library, name):
    fn = getattr(library, name)
    options = {"noise": SeededNoise(0)} if name.endswith("_sde") else {}

    def renamed(*args, **kwargs):
        return fn(*args, **kwargs)

    renamed.__wrapped__ = fn.__wrapped__
    with pytest.raises(ValueError, match=r"renamed (returns another result|could not be tried)"):
        k_diffusion_step(renamed, Denoiser(), SIGMAS, **options)
