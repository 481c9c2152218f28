"""Diffusers' models and schedulers as chains: guidance, options, what is left alone, refusals."""

import diffusers
import pytest
import torch

from chainograd import ChainError, binomial, meter
from chainograd.adapters import diffusers_chain
from tests.chainograd.adapters.diffusers.conformance import Net
from tests.chainograd.adapters.diffusers.pipeline_loops import ordinary

# What diffusers does with numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
SHAPE = (2, 3, 4, 4)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net(SHAPE, 1, 1)


@pytest.fixture
def noise():
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def conditions():
    g = torch.Generator().manual_seed(4)
    return [
        torch.randn(2, 1, 1, 8, dtype=torch.float64, generator=g).requires_grad_() for _ in range(2)
    ]


def solver(N=5):
    """Return a scheduler with a history, ready to run."""
    scheduler = diffusers.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(N)
    return scheduler


def guided_loop(net, x, cond, uncond, w, scheduler=None):
    """Run a pipeline's loop with classifier-free guidance."""
    s = scheduler or solver()
    for i, t in enumerate(s.timesteps):
        both = net(torch.cat([x, x]), t, torch.cat([uncond, cond]))
        first, second = both.chunk(2)
        x = s.step(first + (w[i] if torch.is_tensor(w) else w) * (second - first), t, x).prev_sample
    return x


def gradients(x, wanted):
    return torch.autograd.grad((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum(), wanted)


# Guidance


def test_guidance_in_one_batch_is_that_of_a_pipeline_to_the_bit(net, noise):
    cond, uncond = conditions()
    wanted = (noise.requires_grad_(), cond, uncond, *net.parameters())
    expected = guided_loop(net, noise, cond, uncond, 3.0)
    chain = diffusers_chain(net, solver(), guidance_scale=3.0)

    x = chain(noise, cond=cond, uncond=uncond)

    assert torch.equal(x, expected)
    assert all(map(torch.equal, gradients(x, wanted), gradients(expected, wanted)))


@pytest.mark.parametrize("guidance", ["together", "in turn"])
@pytest.mark.parametrize("shape", [(), (5,)])
def test_the_guidance_scale_gets_its_gradient_once_or_for_every_call(guidance, shape, net, noise):
    cond, uncond = conditions()
    w = torch.full(shape, 2.0, dtype=torch.float64, requires_grad=True)
    expected = gradients(guided_loop(net, noise, cond, uncond, w.expand(5)), [w])[0]

    own = diffusers_chain(net, solver(), guidance_scale=w, guidance=guidance)
    given = diffusers_chain(net, solver(), guidance=guidance)

    # Sums over a batch of 2N and over two of N are not in the same order.
    for x in (
        own(noise, cond=cond, uncond=uncond),
        given(noise, cond=cond, uncond=uncond, guidance_scale=w),
    ):
        torch.testing.assert_close(gradients(x, [w])[0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "plan", ["nodes", "graph", binomial(10, slots=2)], ids=["nodes", "graph", "binomial"]
)
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "LCMScheduler"])
def test_guidance_in_turn_gives_the_same_gradients(plan, name, net, noise):
    cond, uncond = conditions()
    wanted = (noise.requires_grad_(), cond, uncond, *net.parameters())
    schedulers = [getattr(diffusers, name)() for _ in range(2)]
    for s in schedulers:
        s.set_timesteps(5)
    torch.manual_seed(7)
    expected = guided_loop(net, noise, cond, uncond, 3.0, schedulers[0])
    chain = diffusers_chain(net, schedulers[1], guidance_scale=3.0, guidance="in turn", plan=plan)

    torch.manual_seed(7)
    x = chain(noise, cond=cond, uncond=uncond)

    torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-14)
    for g, h in zip(gradients(x, wanted), gradients(expected, wanted), strict=True):
        torch.testing.assert_close(g, h, rtol=1e-11, atol=1e-13)


def test_guidance_in_turn_makes_half_the_graph_and_as_many_evaluations():
    unet = diffusers.UNet2DConditionModel(
        8, 4, 4, block_out_channels=(32,), down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=8, attention_head_dim=8,
    ).requires_grad_(False)  # fmt: skip
    evaluated = []
    unet.register_forward_pre_hook(lambda module, args: evaluated.append(len(args[0])))
    cond, uncond = torch.randn(8, 3, 8), torch.randn(8, 3, 8)
    x_T = torch.randn(8, 4, 8, 8, requires_grad=True)

    def reading(guidance):
        chain = diffusers_chain(
            unet, diffusers.DDIMScheduler(), 6, guidance_scale=2.0, guidance=guidance
        )
        evaluated.clear()
        with meter() as measured:
            chain(x_T, cond=cond, uncond=uncond).sum().backward()
        return measured.peak_bytes, sum(evaluated)

    reading("together")
    whole, half = reading("together"), reading("in turn")

    assert half[0] < 0.56 * whole[0]  # half a graph; the nodes and the weights' casts stay
    assert whole[1] == (2 * 6 - 1) * 16
    assert half[1] == (2 * 12 - 1) * 8  # one prediction fewer is run again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"uncond": 1.0}, "`guidance_scale` is missing"),
        ({"guidance_scale": 2.0}, "`uncond` is missing"),
        ({"uncond": 1.0, "guidance_scale": torch.ones(3)}, "one number, or 5"),
    ],
)
def test_guidance_that_is_half_asked_for_is_refused(arguments, message, net, noise):
    if "uncond" in arguments:
        arguments = {**arguments, "uncond": torch.zeros(8, dtype=torch.float64)}

    with pytest.raises(ValueError, match=message):
        diffusers_chain(net, solver())(noise, cond=torch.zeros(8, dtype=torch.float64), **arguments)


def test_guidance_in_turn_without_guidance_is_refused(net, noise):
    with pytest.raises(ValueError, match="leave `guidance` out"):
        diffusers_chain(net, solver(), guidance="in turn")(noise, cond=torch.zeros(8))


# The scheduler


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


# What the chain adds


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


# Models


def tiny(name):
    """Return a tiny model of a kind, the shape of its input, and what it is conditioned on."""
    if name == "UNet2DConditionModel":
        model = diffusers.UNet2DConditionModel(
            8, 4, 4, block_out_channels=(32, 32), cross_attention_dim=8, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        return model, (2, 4, 8, 8), torch.randn(2, 3, 8)
    if name == "DiTTransformer2DModel":
        model = diffusers.DiTTransformer2DModel(
            2, 8, in_channels=4, out_channels=8, num_layers=1, sample_size=8, norm_num_groups=4,
            num_embeds_ada_norm=10,
        )  # fmt: skip
        return model, (2, 4, 8, 8), torch.tensor([1, 3])
    model = diffusers.SD3Transformer2DModel(
        8, 2, 4, 1, 8, 2, joint_attention_dim=8, caption_projection_dim=16,
        pooled_projection_dim=6, out_channels=4,
    )  # fmt: skip
    given = {"encoder_hidden_states": torch.randn(2, 3, 8), "pooled_projections": torch.randn(2, 6)}
    return model, (2, 4, 8, 8), given


@pytest.mark.parametrize(
    "name", ["UNet2DConditionModel", "DiTTransformer2DModel", "SD3Transformer2DModel"]
)
def test_unets_and_transformers_are_called_as_their_pipelines_call_them(name):
    torch.manual_seed(0)
    model, shape, cond = tiny(name)
    model.double().eval()
    if isinstance(cond, dict):
        cond = {key: value.double().requires_grad_() for key, value in cond.items()}
    elif cond.is_floating_point():
        cond = cond.double().requires_grad_()
    flow = name.startswith("SD3")
    kind = diffusers.FlowMatchEulerDiscreteScheduler if flow else diffusers.DDIMScheduler
    x_T = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def output(x, t):
        t = t.expand(len(x))
        if name == "UNet2DConditionModel":
            return model(x, t, encoder_hidden_states=cond).sample
        if name == "DiTTransformer2DModel":
            return model(x, timestep=t, class_labels=cond).sample[:, :4]
        return model(x, timestep=t, **cond).sample

    scheduler = kind()
    scheduler.set_timesteps(3)
    expected = x_T
    for t in scheduler.timesteps:
        expected = scheduler.step(output(expected, t), t, expected).prev_sample
    x = diffusers_chain(model, kind(), 3)(x_T, cond=cond)

    wanted = [p for p in (x_T, *model.parameters()) if p.requires_grad]
    wanted += [c for c in (cond.values() if isinstance(cond, dict) else [cond]) if c.requires_grad]
    got, plain = (
        torch.autograd.grad(y.square().sum(), wanted, allow_unused=True) for y in (x, expected)
    )
    assert torch.equal(x, expected)
    for g, h in zip(got, plain, strict=True):
        assert (g is None) == (h is None)
        # Attention's kernels may sum over a batch in another order when they run again.
        assert g is None or torch.allclose(g, h, rtol=1e-12, atol=1e-15)


def test_a_condition_that_the_model_has_no_name_for_is_refused_with_the_way_out():
    def model(x, timestep):
        return x

    with pytest.raises(ValueError, match="Pass a dict"):
        diffusers_chain(model, solver())(torch.zeros(SHAPE), cond=torch.zeros(3))


def test_a_wrapped_model_is_seen_through():
    class Inner(torch.nn.Module):
        def forward(self, sample, timestep, encoder_hidden_states):
            return sample * encoder_hidden_states

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Inner()

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    cond = torch.full((), 0.5, dtype=torch.float64, requires_grad=True)
    x = diffusers_chain(Wrapper(), solver())(torch.ones(SHAPE, dtype=torch.float64), cond=cond)

    assert x.requires_grad


def test_integers_are_refused_as_noise(net):
    with pytest.raises(ValueError, match="floating"):
        diffusers_chain(net, solver())(torch.zeros(SHAPE, dtype=torch.long))
