"""Diffusers' models and schedulers as chains: options, what is left alone, refusals."""

import diffusers
import pytest
import torch

from chainograd import ChainError, binomial, meter
from chainograd.adapters import diffusers_chain
from tests.chainograd.adapters.diffusers.guided import SHAPE, conditions, gradients, solver
from tests.chainograd.adapters.diffusers.pipeline_loops import ordinary

# What diffusers does with numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


def test_the_callers_scheduler_is_left_alone(net, noise):
    scheduler = solver()
    before = dict(vars(scheduler))
    outputs = list(scheduler.model_outputs)

    chain = diffusers_chain(net, scheduler)
    chain(noise.requires_grad_(), cond=torch.zeros(8, dtype=torch.float64)).sum().backward()

    assert vars(scheduler) == before
    assert scheduler.model_outputs == outputs


def test_two_runs_of_different_shapes_do_not_see_each_other(net):
    cond = torch.zeros(8, dtype=torch.float64)
    chain = diffusers_chain(net, solver())
    for shape in ((2, 3, 4, 4), (1, 3, 6, 6), (2, 3, 4, 4)):
        x_T = torch.randn(shape, dtype=torch.float64, requires_grad=True)

        x = chain(x_T, cond=cond)

        assert torch.equal(x, ordinary(solver(), net, x_T, cond, {}))


def test_a_scheduler_in_the_middle_of_a_run_is_refused_unless_its_times_are_set_anew(net, noise):
    scheduler = solver()
    scheduler.step(noise, scheduler.timesteps[0], noise)

    with pytest.raises(ValueError, match="in the middle of a run"):
        diffusers_chain(net, scheduler)
    assert diffusers_chain(net, scheduler, 5).num_steps == 5


def test_a_scheduler_without_times_is_refused_with_the_way_out(net):
    with pytest.raises(ValueError, match="pass `num_steps`"):
        diffusers_chain(net, diffusers.DDIMScheduler())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_options": {"etta": 1.0}}, r"step_options\['etta'\].*takes no `etta`"),
        ({"generator": torch.Generator()}, "Seed the global stream"),
    ],
)
def test_options_that_a_step_does_not_take_are_refused(arguments, message, net):
    with pytest.raises(ValueError, match=message):
        diffusers_chain(net, diffusers.PNDMScheduler(), 5, **arguments)


def test_a_generator_is_replayed_and_ends_where_a_plain_loop_leaves_it(net, noise):
    cond, wanted = torch.zeros(8, dtype=torch.float64), noise.requires_grad_()
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(5)
    options = {"eta": 0.8, "generator": generators[0]}
    expected = ordinary(scheduler, net, noise, cond, options)
    chain = diffusers_chain(
        net,
        scheduler,
        5,
        step_options={"eta": 0.8},
        generator=generators[1],
        plan=binomial(5, slots=2),
    )

    x = chain(noise, cond=cond)

    assert torch.equal(x, expected)
    assert torch.equal(gradients(x, wanted)[0], gradients(expected, wanted)[0])
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


class Decorated(diffusers.DDIMScheduler):
    """A scheduler as some libraries write them."""

    @torch.no_grad()
    def step(self, *args, **kwargs):
        """Step."""
        return super().step(*args, **kwargs)


class Detaching(diffusers.DDIMScheduler):
    """A scheduler that loses the gradient inside."""

    def step(self, *args, **kwargs):
        """Step."""
        with torch.no_grad():
            return super().step(*args, **kwargs)


def test_a_step_decorated_with_no_grad_is_run_without_its_decorator(net, noise):
    cond = torch.zeros(8, dtype=torch.float64)
    x_T = noise.requires_grad_()

    grads = [
        gradients(diffusers_chain(net, kind(), 4)(x_T, cond=cond), x_T)[0]
        for kind in (diffusers.DDIMScheduler, Decorated)
    ]

    assert torch.equal(*grads)


def test_a_step_that_loses_the_gradient_inside_is_refused(net, noise):
    chain = diffusers_chain(net, Detaching(), 4, plan="graph")

    with pytest.raises(ChainError, match="without a gradient"):
        chain(noise.requires_grad_(), cond=torch.zeros(8, dtype=torch.float64)).sum().backward()


def test_a_network_whose_forward_is_decorated_is_refused_with_the_way_out(noise):
    class Scorer(torch.nn.Module):
        @torch.no_grad()
        def forward(self, x, t):
            return x

    with pytest.raises(ChainError, match=r"forward\.__wrapped__"):
        diffusers_chain(Scorer(), solver(), plan="graph")(noise.requires_grad_())


@pytest.mark.parametrize("guidance", ["together", "in turn"])
def test_the_trajectory_has_the_sample_after_every_call(guidance, net, noise):
    cond, uncond = conditions()
    chain = diffusers_chain(net, solver(), guidance_scale=2.0, guidance=guidance)

    states = chain.trajectory(noise.requires_grad_(), cond=cond, uncond=uncond)

    assert len(states) == 6
    assert torch.equal(states[0], noise)
    assert torch.equal(states[-1], chain(noise, cond=cond, uncond=uncond))


@pytest.mark.parametrize("guidance", ["together", "in turn"])
@pytest.mark.parametrize("grad_steps", [2, {1, 4}, lambda n: {n - 1}])
def test_truncation_counts_network_calls(guidance, grad_steps, net, noise):
    cond, uncond = conditions()
    steps = grad_steps(5) if callable(grad_steps) else grad_steps
    kept = set(range(5 - steps, 5)) if isinstance(steps, int) else steps
    s, x = solver(), noise
    for i, t in enumerate(s.timesteps):
        with torch.set_grad_enabled(i in kept):
            first, second = net(torch.cat([x, x]), t, torch.cat([uncond, cond])).chunk(2)
            x = s.step(first + 2.0 * (second - first), t, x).prev_sample
            if i not in kept:
                s.model_outputs = [m if m is None else m.detach() for m in s.model_outputs]
    expected = gradients(x, list(net.parameters()))
    chain = diffusers_chain(
        net, solver(), guidance_scale=2.0, guidance=guidance, grad_steps=grad_steps
    )

    got = gradients(chain(noise, cond=cond, uncond=uncond), list(net.parameters()))

    for g, h in zip(got, expected, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("guidance", ["together", "in turn"])
def test_a_transform_sees_the_cotangent_of_the_sample_before_every_call(guidance, net, noise):
    cond, uncond = conditions()
    seen = []
    chain = diffusers_chain(
        net, solver(), guidance_scale=2.0, guidance=guidance,
        grad_transform=lambda j, g: seen.append((j, g.shape)) or 0.5 * g,
    )  # fmt: skip
    states = chain.trajectory(noise.requires_grad_(), cond=cond, uncond=uncond)

    states[-1].sum().backward()

    assert seen == [(j, torch.Size(SHAPE)) for j in (4, 3, 2, 1, 0)]


@pytest.mark.parametrize("guidance", ["together", "in turn"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"])
def test_a_preflight_finds_nothing_in_a_good_chain(name, guidance, net, noise):
    cond, uncond = conditions()
    chain = diffusers_chain(
        net, getattr(diffusers, name)(), 6, guidance_scale=2.0, guidance=guidance
    )

    found = chain.check(noise, cond=cond, uncond=uncond, loss=lambda x: x.square().mean())

    assert not found, found


def test_a_preflight_names_a_decode_without_gradients(net, noise):
    @torch.no_grad()
    def decode(x):
        return x.square()

    found = diffusers_chain(net, solver()).check(
        noise, cond=conditions()[0], loss=lambda x: decode(x).mean()
    )

    assert "gradients off" in {finding.kind for finding in found}


def test_memory_is_that_of_one_call_however_many_there_are():
    unet = diffusers.UNet2DModel(
        16, 3, 3, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    ).requires_grad_(False)  # fmt: skip
    x_T = torch.randn(4, 3, 16, 16, requires_grad=True)

    def peak(N):
        scheduler = diffusers.DPMSolverMultistepScheduler()
        chain = diffusers_chain(unet, scheduler, N)
        with meter() as reading:
            chain(x_T).sum().backward()
        return reading.peak_bytes

    peak(3)
    # A node holds the sample and the solver's two last outputs.
    assert peak(20) - peak(5) < 15 * 4 * x_T.nbytes


def test_integers_are_refused_as_noise(net):
    with pytest.raises(ValueError, match="floating"):
        diffusers_chain(net, solver())(torch.zeros(SHAPE, dtype=torch.long))
