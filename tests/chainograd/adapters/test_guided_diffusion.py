"""guided-diffusion's samplers as chains, and its networks in DDIM.

`Diffusion` has the interface and the conventions of guided-diffusion's spaced diffusion.
"""

import pytest
import torch

from chainograd import ChainError, CheckpointedChain
from chainograd.adapters.guidance import classifier_guidance
from chainograd.adapters.guided_diffusion import guided_diffusion_step
from chainograd.adapters.guided_networks import guided_diffusion_ddim
from chainograd.samplers import SeededNoise
from tests.problems import plain

X_T = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))


class Named:
    """Stands for a member of an enumeration."""

    def __init__(self, name):
        self.name = name


class Diffusion:
    """Spaced to M of 1000 steps; tables in float64, float32 where they are used."""

    def __init__(self, M=5, *, predicts="EPSILON", rescale=False):
        every = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)
        self.timestep_map = [i * 999 // (M - 1) for i in range(M)]
        kept = every[self.timestep_map]
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        self.betas = (1 - kept / before).numpy()
        self.num_timesteps, self.original_num_steps = M, 1000
        self.model_mean_type, self.rescale_timesteps = Named(predicts), rescale
        self.tables = kept, before

    def at(self, t):
        """Return alpha-bar at t and before it, and whether noise is added there."""
        shape = (-1, 1, 1, 1)
        return (*(a[t].float().view(shape) for a in self.tables), (t != 0).float().view(shape))

    def predicted(self, model, x, t, clip_denoised, model_kwargs):
        times = torch.tensor(self.timestep_map)[t]
        if self.rescale_timesteps:
            times = times.float() * (1000.0 / self.original_num_steps)
        output = model(x, times, **model_kwargs)[:, : x.shape[1]]
        a, _, _ = self.at(t)
        if self.model_mean_type.name == "EPSILON":
            output = (x - (1 - a).sqrt() * output) / a.sqrt()
        return output.clamp(-1, 1) if clip_denoised else output

    def ddim_sample(
        self, model, x, t, clip_denoised=True, cond_fn=None, model_kwargs=None, eta=0.0
    ):
        x_0 = self.predicted(model, x, t, clip_denoised, model_kwargs)
        a, a_prev, noisy = self.at(t)
        eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        if cond_fn is not None:
            eps = eps - (1 - a).sqrt() * cond_fn(x, t, **model_kwargs)
            x_0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        sigma = eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)).sqrt()
        z = torch.randn_like(x)
        x = a_prev.sqrt() * x_0 + (1 - a_prev - sigma**2).sqrt() * eps + noisy * sigma * z
        return {"sample": x, "pred_xstart": x_0}

    def p_sample(self, model, x, t, clip_denoised=True, cond_fn=None, model_kwargs=None):
        x_0 = self.predicted(model, x, t, clip_denoised, model_kwargs)
        a, a_prev, noisy = self.at(t)
        alpha, variance = a / a_prev, (1 - a_prev) / (1 - a) * (1 - a / a_prev)
        mean = a_prev.sqrt() * (1 - alpha) * x_0 + alpha.sqrt() * (1 - a_prev) * x
        mean = mean / (1 - a)
        if cond_fn is not None:
            mean = mean + variance * cond_fn(x, t, **model_kwargs)
        return {"sample": mean + noisy * variance.sqrt() * torch.randn_like(x)}

    def loop(self, sampler, model, x, model_kwargs, **options):
        """Yield states under no_grad, as guided-diffusion's loops do."""
        for i in reversed(range(self.num_timesteps)):
            with torch.no_grad():
                t = torch.tensor([i] * len(x))
                x = getattr(self, f"{sampler}_sample")(
                    model, x, t, model_kwargs=model_kwargs, **options
                )["sample"]
                yield x


class Network(torch.nn.Module):
    """Predicts a variance beside the noise, in further channels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x, t, y=0.0):
        return torch.tanh(self.conv(x) * (1 + t.view(-1, 1, 1, 1) / 1000) + y)


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = torch.nn.Linear(12, 1)

    def forward(self, x, t, y=0.0):
        return torch.nn.functional.logsigmoid(self.linear(torch.tanh(x).flatten(1)))[:, 0]


SAMPLERS = [("ddim", {}), ("ddim", {"eta": 0.7}), ("p", {}), ("ddim", {"clip_denoised": False})]


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
@pytest.mark.parametrize("guided", [False, True], ids=["alone", "guided"])
def test_the_sample_is_that_of_its_own_loop_to_the_bit(sampler, options, guided):
    diffusion, model = Diffusion(), Network()
    options = {**options, "cond_fn": classifier_guidance(Classifier()) if guided else None}
    step = guided_diffusion_step(diffusion, model, sampler=sampler, **options)

    torch.manual_seed(5)
    ours = CheckpointedChain(step, step.num_steps)(X_T, y=0.3)

    torch.manual_seed(5)
    *_, theirs = diffusion.loop(sampler, model, X_T, {"y": 0.3}, **options)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("of_x_T", [True, False], ids=["of x_T too", "of weights alone"])
@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
def test_the_gradients_are_those_of_the_plain_loop_to_the_bit(sampler, options, of_x_T):
    model, classifier, y = Network(), Classifier(), torch.tensor(0.3, requires_grad=True)
    step = guided_diffusion_step(
        Diffusion(), model, sampler=sampler, cond_fn=classifier_guidance(classifier), **options
    )

    def gradients(run):
        torch.manual_seed(5)
        x_T = X_T.clone().requires_grad_(of_x_T)
        wanted = [y, *model.parameters(), *classifier.parameters(), *([x_T] if of_x_T else [])]
        return torch.autograd.grad(run(x_T).square().sum(), wanted, allow_unused=True)

    chained = gradients(lambda x: CheckpointedChain(step, 5)(x, y=y))

    looped = gradients(lambda x: plain(step, 5, x, y=y))
    assert all(map(torch.equal, chained, looped))
    assert all(g.abs().max() > 0 for g in chained)


def test_a_step_does_not_leave_the_caller_under_no_grad_as_the_library_s_loops_do():
    diffusion, model = Diffusion(), Network()
    leaks = []
    for _ in diffusion.loop("ddim", model, X_T, {}):
        leaks.append(not torch.is_grad_enabled())
    step = guided_diffusion_step(diffusion, model)

    x_0 = plain(step, 5, X_T)

    assert all(leaks)
    assert torch.is_grad_enabled()
    assert x_0.requires_grad


def test_arguments_of_the_chain_come_before_those_of_every_step():
    seen = []
    model = lambda x, t, **kwargs: seen.append(kwargs) or x  # noqa: E731
    step = guided_diffusion_step(Diffusion(), model, model_kwargs={"a": 1, "b": 2})

    step(X_T, 0, b=3)

    assert seen == [{"a": 1, "b": 3}]


def test_guidance_is_the_scaled_gradient_of_the_log_probability():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def guidance(x, scale):
        return classifier_guidance(lambda x, t: x.sin().sum(1), scale=scale)(x, None)

    torch.testing.assert_close(guidance(x, scale), scale * x.cos(), rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(guidance, (x, scale))


def test_guidance_that_cuts_its_gradient_is_refused_where_one_has_to_pass():
    def as_in_the_script(x, t):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(Classifier()(x, t).sum(), x)[0]

    step = guided_diffusion_step(Diffusion(), Network(), cond_fn=as_in_the_script)

    with pytest.raises(ChainError, match=r"`cond_fn` .* without a gradient.*classifier_guidance"):
        step(X_T.clone().requires_grad_(), 0)
    with torch.no_grad():
        step(X_T, 0)


@pytest.mark.parametrize("predicts", ["EPSILON", "START_X"])
@pytest.mark.parametrize("rescale", [False, True], ids=["indices", "rescaled times"])
def test_our_ddim_asks_a_network_what_theirs_does_and_draws_the_same_sample(predicts, rescale):
    diffusion, model = Diffusion(predicts=predicts, rescale=rescale), Network()
    asked = []
    model.register_forward_pre_hook(lambda _, args: asked.append(args[1]))
    step = guided_diffusion_ddim(diffusion, model)

    ours = plain(step, step.num_steps, X_T, y=0.3)
    asked_by_ours = asked[:]
    asked.clear()

    *_, theirs = diffusion.loop("ddim", model, X_T, {"y": 0.3}, clip_denoised=False)
    # Their tables are float32, and the first step multiplies by 1/sqrt(alpha_bar(999)) = 157.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert [t.dtype for t in asked_by_ours] == [t.dtype for t in asked]
    assert all(map(torch.equal, asked_by_ours, asked))


def test_our_ddim_on_a_network_of_theirs_takes_noise_that_is_a_value():
    step = guided_diffusion_ddim(Diffusion(), Network(), eta=1.0, noise=SeededNoise(0), clamp=1.0)

    x_0 = plain(step, step.num_steps, X_T)

    assert torch.equal(x_0, plain(step, step.num_steps, X_T))
    assert x_0.abs().max() <= 1


def test_a_network_that_predicts_the_next_state_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"PREVIOUS_X.*Use `guided_diffusion_step`"):
        guided_diffusion_ddim(Diffusion(predicts="PREVIOUS_X"), Network())


@pytest.mark.parametrize(
    ("diffusion", "options", "error", "match"),
    [
        (Diffusion(), {"sampler": "plms"}, ValueError, "`sampler` must be one of"),
        (Diffusion(), {"sampler": "p", "eta": 0.5}, ValueError, r"`eta` is 0.5.*`sampler='ddim'`"),
        (object(), {}, TypeError, "no method `ddim_sample`"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(diffusion, options, error, match):
    with pytest.raises(error, match=match):
        guided_diffusion_step(diffusion, Network(), **options)


@pytest.mark.parametrize("i", [-1, 5])
def test_a_step_beyond_those_of_the_diffusion_is_refused(i):
    with pytest.raises(IndexError, match=f"Step {i} .* 5 steps"):
        guided_diffusion_step(Diffusion(), Network())(X_T, i)
