"""Guidance: both predictions in one batch, or one after the other."""

import diffusers
import pytest
import torch

from chainograd import binomial, meter
from chainograd.adapters import diffusers_chain
from tests.chainograd.adapters.diffusers.guided import conditions, gradients, guided_loop, solver

# What diffusers does with numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


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
