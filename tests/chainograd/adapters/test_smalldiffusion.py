"""smalldiffusion's sampler as a chain: its samples to the bit, and the gradients it never had."""

from types import SimpleNamespace

import pytest
import smalldiffusion
import torch

from chainograd import CheckpointedChain
from chainograd.adapters.smalldiffusion import smalldiffusion_step
from chainograd.samplers import MultistepState, SeededNoise
from tests.problems import plain

M = 7
SIGMAS = smalldiffusion.ScheduleLogLinear(200, 0.02, 10).sample_sigmas(M)
FLOW = smalldiffusion.ScheduleFlow(200).sample_sigmas(M)  # float64, and ends in 0
X_T = 10 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([1, 0, 2, 1])
KINDS = {
    "ddim": {"gam": 1, "mu": 0},
    "ddpm": {"gam": 1, "mu": 0.5},
    "accelerated": {"gam": 2, "mu": 0},
    "both": {"gam": 1.5, "mu": 0.3},
}


def mlp():
    torch.manual_seed(0)
    return smalldiffusion.TimeInputMLP(hidden_dims=(8, 8)).eval()


def conditional_mlp():
    torch.manual_seed(0)
    return smalldiffusion.ConditionalMLP(hidden_dims=(8, 8), num_classes=3).eval()


def their_samples(generator, model, sigmas, x_T, seed=5, **options):
    """Return the last of smalldiffusion's samples, without a look at accelerators."""
    torch.manual_seed(seed)
    here = SimpleNamespace(device="cpu")
    return list(generator(model, sigmas, xt=x_T, accelerator=here, **options))[-1]


def our_sample(model, sigmas, x_T, seed=5, **options):
    step = smalldiffusion_step(model, sigmas, **options)
    torch.manual_seed(seed)
    return CheckpointedChain(step, step.num_steps)(MultistepState.start(x_T)).x


@pytest.mark.parametrize("sigmas", [SIGMAS, FLOW], ids=["log-linear", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_is_that_of_smalldiffusion_to_the_bit(kind, sigmas):
    model = mlp()
    ours = our_sample(model, sigmas, X_T, **KINDS[kind])

    assert torch.equal(
        ours, their_samples(smalldiffusion.samples, model, sigmas, X_T, **KINDS[kind])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_are_those_of_its_loop_without_no_grad(kind):
    model = mlp()

    def gradients(run):
        x_T = X_T.clone().requires_grad_()
        return torch.autograd.grad(run(x_T).square().sum(), [x_T, *model.parameters()])

    ours = gradients(lambda x: our_sample(model, SIGMAS, x, **KINDS[kind]))

    undecorated = smalldiffusion.samples.__wrapped__
    theirs = gradients(lambda x: their_samples(undecorated, model, SIGMAS, x, **KINDS[kind]))
    assert all(map(torch.equal, ours, theirs))
    assert all(g.abs().max() > 0 for g in ours)


def test_guidance_is_that_of_smalldiffusion_to_the_bit():
    model = conditional_mlp()

    ours = our_sample(model, SIGMAS, X_T, gam=2, cfg_scale=3.0, cond=LABELS)

    theirs = their_samples(
        smalldiffusion.samples, model, SIGMAS, X_T, gam=2, cfg_scale=3.0, cond=LABELS
    )
    assert torch.equal(ours, theirs)


def test_conditioning_given_to_the_chain_comes_before_that_given_beforehand():
    model = conditional_mlp()
    state = MultistepState.start(X_T)
    beforehand = smalldiffusion_step(model, SIGMAS, cond=LABELS)

    at_the_call = smalldiffusion_step(model, SIGMAS, cond=0 * LABELS)(state, 0, cond=LABELS)

    assert torch.equal(at_the_call.x, beforehand(state, 0).x)


def test_a_step_with_noise_by_index_is_the_same_in_any_order():
    step = smalldiffusion_step(mlp(), SIGMAS, mu=0.5, noise=SeededNoise(0))
    state = MultistepState(X_T, X_T)
    first = [step(state, i).x for i in range(M)]

    again = [step(state, i).x for i in reversed(range(M))]

    assert all(map(torch.equal, first, reversed(again)))


def test_noise_levels_can_be_learned_where_no_noise_is_added():
    sigmas = SIGMAS.double().requires_grad_()
    step = smalldiffusion_step(mlp().double(), sigmas, gam=2)
    x_T = MultistepState.start(X_T.double())

    # The loop's own gradient would be NaN: it adds sqrt(0) times noise.
    assert torch.autograd.gradcheck(lambda sigmas: plain(step, M, x_T).x, sigmas)


@pytest.mark.parametrize("mu", [-0.1, 1, float("nan")])
def test_a_mu_out_of_range_is_refused(mu):
    with pytest.raises(ValueError, match=r"`mu` must lie in \[0, 1\), got"):
        smalldiffusion_step(mlp(), SIGMAS, mu=mu)


def test_a_model_of_another_library_is_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"`model` must have `predict_eps_cfg`.*ModelMixin"):
        smalldiffusion_step(torch.nn.Linear(2, 2), SIGMAS)


@pytest.mark.parametrize("i", [-1, M])
def test_a_step_beyond_the_noise_levels_is_refused(i):
    with pytest.raises(IndexError, match=f"Step {i} .* 7 steps"):
        smalldiffusion_step(mlp(), SIGMAS)(MultistepState.start(X_T), i)
