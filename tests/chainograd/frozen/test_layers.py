"""Frozen layers: their results and gradients are torch's to the bit, in chains too."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from chainograd import CheckpointedChain, meter
from chainograd.frozen.layers import FrozenLayers
from tests.chainograd.frozen.stacks import (
    Modulated,
    alike,
    derivatives,
    gradient,
    norm_act,
    prepared,
    stack,
    with_mode,
)
from tests.problems import plain

# Torch pads a copy for even kernels, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8)),
    (nn.Conv2d(4, 8, 3, dilation=2, groups=2, bias=False), (2, 4, 9, 9)),
    (nn.Conv2d(4, 4, 3, padding="same", dilation=3), (2, 4, 8, 8)),
    (nn.Conv2d(4, 4, 4, padding="same"), (2, 4, 8, 8)),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (2, 4, 8, 8)),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), (2, 4, 8, 8)),
    (nn.Conv2d(4, 6, 3, padding="valid"), (4, 8, 8)),
    (nn.Conv2d(1, 8, 3, padding=1), (4, 1, 14, 14)),
    (nn.Conv3d(2, 3, 3, padding=(1, 0, 1)), (2, 2, 5, 5, 5)),
    (nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2, dilation=2), (2, 4, 5, 5)),
    (nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 3, 3, 3)),
]


class Adaptive(nn.Module):
    """A layer norm whose scale and shift come from a conditioning, as in transformers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=False)
        self.scale, self.shift = torch.randn(2, 1, 8), torch.randn(2, 1, 8)

    def forward(self, x):
        return nn.functional.silu(self.norm(x) * (1 + self.scale.to(x)) + self.shift.to(x))


BLOCKS = [
    (norm_act(nn.SiLU()), (2, 8, 4, 4)),
    (norm_act(nn.SiLU(inplace=True)), (2, 8, 4, 4)),
    (norm_act(nn.GELU()), (2, 8, 4)),
    (norm_act(nn.GELU(approximate="tanh")), (2, 8, 4, 4)),
    (norm_act(nn.ReLU()), (2, 8, 4, 4)),
    (nn.Sequential(nn.GroupNorm(4, 8, affine=False), nn.SiLU()), (2, 8, 3, 3, 3)),
    (nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 4, 3, stride=2)), (2, 8, 7, 7)),
    (
        nn.Sequential(nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 4, padding="same")),
        (2, 8, 4, 4),
    ),
    (Modulated(nn.SiLU()), (2, 8, 4, 4)),
    (nn.Sequential(nn.BatchNorm2d(8).eval(), nn.ReLU()), (2, 8, 4, 4)),
    (nn.Sequential(nn.BatchNorm1d(8, affine=False).eval(), nn.SiLU()), (5, 8)),
    (nn.Sequential(nn.LayerNorm(8), nn.GELU()), (2, 3, 8)),
    (nn.Sequential(nn.RMSNorm(8), nn.SiLU(), nn.Linear(8, 5)), (2, 3, 8)),
    (nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), nn.ReLU()), (2, 3, 8)),
    (Adaptive(), (2, 16, 8)),
]


def in_other_order(x):
    """Return x channels last; strides say so of one channel too."""
    N, C, H, W = x.shape
    return torch.empty(N, H, W, C, dtype=x.dtype).permute(0, 3, 1, 2).copy_(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS + BLOCKS, ids=str)
def test_results_gradients_and_second_derivatives_are_torchs_to_the_bit(layer, shape, dtype):
    layer, x = prepared(layer, dtype), torch.randn(shape).to(dtype)
    inputs = [x]
    if len(shape) == 4:  # the weights stay as they were
        inputs.append(in_other_order(x))
    for x in inputs:
        mine, plain = (derivatives(layer, x, mode) for mode in (FrozenLayers(), nullcontext()))
        assert len(mine) == len(plain)
        assert all(map(alike, mine, plain))


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS + BLOCKS, ids=str)
def test_first_and_second_derivatives_are_those_of_finite_differences(layer, shape):
    layer = prepared(layer, torch.float64)
    x = torch.randn(shape, dtype=torch.float64).requires_grad_()

    def f(x):
        with FrozenLayers():
            return layer(x)

    assert torch.autograd.gradcheck(f, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, x, fast_mode=True)


def test_layers_that_learn_are_left_to_torch():
    layer = nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3))
    x = torch.randn(2, 8, 6, 6, requires_grad=True)

    def gradients(f):
        return torch.autograd.grad(f(x).sum(), [x, *layer.parameters()])

    assert all(map(torch.equal, gradients(layer), gradients(with_mode(layer))))


def test_autocast_is_that_of_the_plain_layer():
    layer = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3)
    ).requires_grad_(False)
    x, v = torch.randn(2, 8, 6, 6), torch.randn(2, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, g = gradient(layer, x, v, FrozenLayers())
        expected, plain = gradient(layer, x, v)

    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    assert torch.equal(g, plain)


class OtherSilu(TorchFunctionMode):
    """Runs another function in the place of one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.silu:
            return torch.sigmoid(args[0]) * args[0]
        return func(*args, **(kwargs or {}))


class TwiceTheNorm(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        return 2 * y if func is F.group_norm else y


class Own(torch.Tensor):
    """A subclass that does nothing."""


def test_layers_of_tensor_subclasses_are_left_to_torch():
    norm, x = nn.GroupNorm(2, 8).requires_grad_(False), torch.randn(2, 8, 4, 4)

    def layer(x):
        return F.silu(norm(x.as_subclass(Own))).as_subclass(torch.Tensor)

    _, g = gradient(layer, x, torch.ones_like(x), FrozenLayers())
    _, plain = gradient(layer, x, torch.ones_like(x))
    assert torch.equal(g, plain)


@pytest.mark.parametrize("around", [OtherSilu, TwiceTheNorm])
def test_layers_under_a_function_mode_of_the_user_are_left_to_the_mode(around):
    layer, x = norm_act(nn.SiLU()).requires_grad_(False), torch.randn(2, 8, 4, 4)

    with around():
        _, g = gradient(layer, x, torch.ones_like(x), FrozenLayers())
        _, plain = gradient(layer, x, torch.ones_like(x))

    assert torch.equal(g, plain)


def test_module_hooks_see_the_tensors_of_the_plain_layers():
    layer = nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3)).requires_grad_(False)
    seen = []
    layer[1].register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    layer[2].register_full_backward_hook(lambda m, into, out: seen.append(into[0]))
    x = torch.randn(2, 8, 6, 6, requires_grad=True)

    def run(f):
        seen.clear()
        f(x).sum().backward()
        return [t for entry in seen for t in (entry if isinstance(entry, tuple) else (entry,))]

    mine, plain = [t.detach() for t in run(with_mode(layer))], [t.detach() for t in run(layer)]
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_a_chain_with_frozen_layers_needs_less_and_gives_the_same():
    torch.manual_seed(0)
    blocks = [
        m for _ in range(16) for m in (nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1))
    ]
    net = nn.Sequential(*blocks).requires_grad_(False)

    def run(frozen, dtype):
        net.to(dtype)
        shift = torch.zeros(8, 1, 1, dtype=dtype, requires_grad=True)
        x = torch.linspace(-1, 1, 4 * 8 * 16 * 16, dtype=dtype).view(4, 8, 16, 16)
        chain = CheckpointedChain(lambda x, i: x + 0.1 * net(x + shift), 3, frozen=frozen)
        with meter() as reading:
            (g,) = torch.autograd.grad(chain(x).square().sum(), shift)
        return g, reading.peak_bytes

    assert torch.equal(run("auto", torch.float64)[0], run("off", torch.float64)[0])
    # In float64 the convolution's own buffers would hide what is kept.
    (g, peak), (plain, its_peak) = run("auto", torch.float32), run("off", torch.float32)
    assert torch.equal(g, plain)
    assert peak < 0.5 * its_peak


def test_a_chain_with_frozen_layers_may_be_inside_another():
    layer, x = stack(), torch.randn(1, 8, 4, 4, requires_grad=True)

    def gradient(frozen):
        inner = CheckpointedChain(lambda x, i: x + layer(x), 2, plan="graph", frozen=frozen)
        outer = CheckpointedChain(lambda x, i: torch.tanh(inner(x)), 2, frozen=frozen)
        return torch.autograd.grad(outer(x).sum(), x)[0]

    assert torch.equal(gradient("auto"), gradient("off"))


def test_frozen_layers_do_not_break_a_compiled_step_into_pieces():
    net = nn.Sequential(nn.GroupNorm(1, 2), nn.SiLU(), nn.Conv2d(2, 2, 3, padding=1))
    net, x = net.requires_grad_(False), torch.randn(1, 2, 4, 4, requires_grad=True)
    graphs = []

    def note(graph, inputs):
        graphs[-1] += 1
        return graph

    grads = []
    for frozen in ("off", "auto"):
        torch.compiler.reset()
        graphs.append(0)
        compiled = torch.compile(net, backend=note)
        chain = CheckpointedChain(lambda x, i, net=compiled: x + 0.1 * net(x), 3, frozen=frozen)
        grads += torch.autograd.grad(chain(x).square().sum(), x)

    assert graphs[0] == graphs[1] > 0
    assert torch.equal(*grads)


def test_a_torch_func_transform_inside_a_step_is_exact_with_frozen_layers():
    torch.manual_seed(0)
    guide = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(2, 2), nn.SiLU())
    guide = guide.requires_grad_(False).double()
    net = nn.Conv2d(1, 1, 3, padding=1).double()

    def step(x, i):
        pull = torch.func.grad(lambda y: torch.tanh(guide(y)).sum())(x)
        return x + 0.1 * net(x) + 0.1 * pull

    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    grads = []
    for run in (CheckpointedChain(step, 3, frozen="auto"), lambda x: plain(step, 3, x)):
        net.zero_grad()
        run(x).square().sum().backward()
        grads.append(net.weight.grad.clone())

    assert torch.equal(*grads)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 3, 3)])
def test_frozen_layers_take_empty_batches_and_leave_complex_ones_to_torch(shape):
    net = torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.SiLU()).requires_grad_(False)
    x = torch.ones(shape, requires_grad=True)
    CheckpointedChain(lambda x, i: net(x), 3, frozen="auto")(x).sum().backward()
    assert x.grad.shape == shape

    weight = torch.randn(4, 4, 3, 3, dtype=torch.complex64) / 6
    z = torch.ones(shape, dtype=torch.complex64, requires_grad=True)

    def step(z, i):
        return torch.conv2d(z, weight, padding=1)

    def gradient(run):
        return torch.autograd.grad(run(z).abs().sum(), z)[0]

    assert torch.equal(
        gradient(CheckpointedChain(step, 3, frozen="auto")), gradient(lambda z: plain(step, 3, z))
    )
