"""UNets and transformers are called as their pipelines call them."""

import diffusers
import pytest
import torch

from chainograd.adapters import diffusers_chain
from tests.chainograd.adapters.diffusers.guided import SHAPE, solver

# What diffusers does with numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


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


def test_a_condition_without_a_parameter_of_the_model_is_refused_with_the_way_out():
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
