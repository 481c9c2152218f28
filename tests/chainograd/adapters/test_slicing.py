"""Samplers whose loop may be cut into steps, and samplers that are refused with the reason."""

import pytest
import torch

from chainograd import CheckpointedChain
from chainograd.adapters.k_diffusion import k_diffusion_step
from chainograd.samplers import SeededNoise
from tests.chainograd.adapters.toy_samplers import (
    SIGMAS,
    Denoiser,
    M,
    deterministic,
    sample_and_gradients,
    sample_heun,
    with_a_memory,
)


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


def test_a_sampler_with_a_memory_is_refused_under_any_name():
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
