"""Frozen layers: what they keep, and that their gradients are torch's to the bit."""

import copy
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from chainograd import CheckpointedChain, meter
from chainograd.errors import ChangedTensorError
from chainograd.frozen.layers import FrozenLayers
from chainograd.frozen.recompute import recomputation_of_norm

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


class Modulated(nn.Module):
    """A norm, its scale and shift from a conditioning, an activation."""

    def __init__(self, act):
        super().__init__()
        self.norm, self.act = nn.GroupNorm(2, 8), act
        self.scale, self.shift = torch.randn(2, 8, 1, 1), torch.randn(2, 8, 1, 1)

    def forward(self, x):
        return self.act(self.norm(x) * (1 + self.scale.to(x)) + self.shift.to(x))


class Adaptive(nn.Module):
    """A layer norm whose scale and shift come from a conditioning, as in transformers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=False)
        self.scale, self.shift = torch.randn(2, 1, 8), torch.randn(2, 1, 8)

    def forward(self, x):
        return nn.functional.silu(self.norm(x) * (1 + self.scale.to(x)) + self.shift.to(x))


def norm_act(act):
    return nn.Sequential(nn.GroupNorm(2, 8), act)


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


def prepared(layer, dtype):
    layer = copy.deepcopy(layer).to(dtype).requires_grad_(False)
    torch.manual_seed(0)
    for module in layer.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)):
            nn.init.normal_(module.weight) if module.weight is not None else None
            nn.init.normal_(module.bias) if module.bias is not None else None
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    return layer


def gradient(layer, x, v, mode=None):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with mode or nullcontext():
        y = layer(x)
    return y.detach(), torch.autograd.grad(y, x, v.to(y.dtype))[0]


def derivatives(layer, x, mode):
    """Return a layer's result, its gradient, and the gradients of that one's square."""
    torch.manual_seed(0)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with mode:
        y = layer(x)
    v = torch.randn(y.shape).to(y.dtype).requires_grad_()
    (g,) = torch.autograd.grad(y, x, v, create_graph=True)
    second = torch.autograd.grad(g.square().sum(), [x, v], allow_unused=True)
    return [y, g, *(t for t in second if t is not None)]


def in_other_order(x):
    """Return x channels last; strides say so of one channel too."""
    N, C, H, W = x.shape
    return torch.empty(N, H, W, C, dtype=x.dtype).permute(0, 3, 1, 2).copy_(x)


def alike(a, b):
    return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


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


def kept(f, x):
    """Return the bytes that f's graph holds, its result not counted."""
    with meter() as reading:
        y = f(x)
    return reading.live_bytes - y.untyped_storage().nbytes()


def with_mode(layer):
    def f(x):
        with FrozenLayers():
            return layer(x)

    return f


def test_a_frozen_stack_keeps_the_norms_inputs_and_nothing_else():
    n = 4 * 8 * 16 * 16 * 4
    layer, x = stack(), torch.randn(4, 8, 16, 16, requires_grad=True)

    small = 8 * 4 * 100  # statistics, scales and shifts
    # torch: both norms' results and both activations', and one convolution's result
    assert 5 * n <= kept(layer, x) <= 5 * n + small
    assert n <= kept(with_mode(layer), x) <= n + small


def stack():
    return nn.Sequential(
        nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1),
    ).requires_grad_(False)  # fmt: skip


def test_it_keeps_no_more_beside_a_default_device():
    n = 4 * 8 * 16 * 16 * 4
    layer, x = stack(), torch.randn(4, 8, 16, 16, requires_grad=True)

    with torch.device("cpu"):
        assert kept(with_mode(layer), x) <= n + 8 * 4 * 100


def test_under_autocast_a_frozen_stack_keeps_half_of_that():
    n = 4 * 8 * 16 * 16 * 2
    x = torch.randn(4, 8, 16, 16, requires_grad=True, dtype=torch.bfloat16)

    with torch.autocast("cpu", torch.bfloat16):
        assert n <= kept(with_mode(stack()), x) <= n + 8 * 4 * 100
        assert kept(stack(), x) >= 5 * n


@pytest.mark.parametrize("make", ["channels last", "strided"])
def test_in_another_order_in_memory_it_keeps_no_more(make):
    n = 4 * 8 * 16 * 16 * 4
    layer, x = stack(), torch.randn(4, 8, 16, 16)
    if make == "channels last":
        layer, x = (thing.to(memory_format=torch.channels_last) for thing in (layer, x))
    else:
        x = torch.randn(4, 16, 16, 8).permute(0, 3, 2, 1)
    x.requires_grad_()

    # Older torch saves a copy of what its kernels cannot take as it lies there.
    copied = layer[0](x).grad_fn._saved_input.data_ptr() != x.data_ptr()

    assert kept(with_mode(layer), x) <= (1 + copied) * n + 8 * 4 * 100
    mine, plain = (derivatives(layer, x.detach(), m) for m in (FrozenLayers(), nullcontext()))
    assert all(map(alike, mine, plain))


def test_a_norm_is_made_again_from_what_its_node_saves_and_nothing_else_is_kept():
    # Under CUDA's autocast that is another tensor than the norm was given.
    x, node = torch.randn(2, 2), SimpleNamespace(_saved_input=torch.randn(2, 2))
    given = weakref.ref(x)

    recomputation = recomputation_of_norm(node, x, torch.tanh, ())
    del x

    assert torch.equal(recomputation.result(), node._saved_input.tanh())
    assert given() is None


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_the_activation_of_a_norm_of_the_last_axis_keeps_nothing(norm):
    n = 64 * 32 * 4
    layer = nn.Sequential(norm(32), nn.SiLU(), nn.Linear(32, 32)).requires_grad_(False)
    x = torch.randn(64, 32, requires_grad=True)

    assert kept(layer, x) - kept(with_mode(layer), x) >= n


def test_batch_norm_in_eval_mode_keeps_nothing():
    layer = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8).eval()).requires_grad_(False)
    x = torch.randn(4, 8, 16, 16, requires_grad=True)

    assert kept(with_mode(layer), x) < 1000 < kept(layer, x)


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.RMSNorm(8), nn.LayerNorm(8)], ids=str)
def test_torch_itself_keeps_no_more_than_the_input_of_these(layer):
    x = torch.randn(64, 8, requires_grad=True)

    assert kept(layer.requires_grad_(False), x) <= 64 * 4 * 2


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


def test_weights_that_autocast_casts_are_not_kept_twice():
    layer, x = nn.Conv2d(64, 64, 3).requires_grad_(False), torch.randn(1, 64, 3, 3).requires_grad_()

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert kept(with_mode(layer), x) < 1000
        assert kept(layer, x) > 64 * 64 * 9 * 2


@pytest.mark.parametrize("cast", [True, False])
def test_a_norm_is_made_again_under_the_autocast_of_its_first_run(cast):
    # No norm of the CPU's is cast; a product of matrices stands for those that CUDA casts.
    x = torch.randn(2, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        recomputation = recomputation_of_norm(object(), x, lambda x: x @ x, ())

    with torch.autocast("cpu", torch.bfloat16, enabled=not cast):
        assert recomputation.result().dtype == (torch.bfloat16 if cast else torch.float32)


def test_a_norms_result_that_was_changed_in_place_is_not_made_again_from_the_norm():
    norm = nn.GroupNorm(2, 8).requires_grad_(False).double()
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)

    def layer(x):
        y = norm(x)
        y.mul_(3)
        return F.silu(y)

    _, g = gradient(layer, x, torch.ones_like(x), FrozenLayers())
    _, plain = gradient(layer, x, torch.ones_like(x))
    assert torch.equal(g, plain)


@pytest.mark.parametrize("what", ["norm's bias", "shift"])
def test_a_constant_that_is_changed_before_the_backward_pass_is_refused(what):
    norm, shift = nn.GroupNorm(2, 8).requires_grad_(False), torch.zeros(8, 1, 1)
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    y = with_mode(lambda x: F.silu(norm(x) + shift))(x)
    (shift if what == "shift" else norm.bias).add_(1)

    with pytest.raises(ChangedTensorError, match="changed in place"):
        y.sum().backward()


def test_hooks_that_are_forbidden_stay_so():
    layer, x = stack(), torch.randn(2, 8, 16, 16, requires_grad=True)

    with torch.autograd.graph.disable_saved_tensors_hooks("no hooks here"):
        with_mode(layer)(x)
        with pytest.raises(RuntimeError, match="no hooks here"):
            torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t).__enter__()


def test_where_hooks_are_on_all_that_is_saved_it_is_left_to_them():
    layer, x = stack(), torch.randn(1, 8, 4, 4)
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return len(saved) - 1

    def unpack(place):
        tensor, saved[place] = saved[place], None  # may be asked once only
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        _, plain = gradient(layer, x, torch.ones_like(x))
        count = len(saved)
        _, g = gradient(layer, x, torch.ones_like(x), FrozenLayers())

    assert len(saved) == 2 * count
    assert torch.equal(g, plain)


@pytest.mark.parametrize("cast", [True, False])
def test_a_frozen_weight_changed_before_backward_is_refused(cast):
    layer = nn.Conv2d(4, 4, 3).requires_grad_(False)
    x = torch.randn(1, 4, 6, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        y = with_mode(layer)(x)
    layer.weight.mul_(2)

    with pytest.raises(
        RuntimeError, match=r"in place before the backward pass|modified by an inplace operation"
    ):
        y.sum().backward()


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


def test_of_a_subclass_layers_are_left_to_torch():
    norm, x = nn.GroupNorm(2, 8).requires_grad_(False), torch.randn(2, 8, 4, 4)

    def layer(x):
        return F.silu(norm(x.as_subclass(Own))).as_subclass(torch.Tensor)

    _, g = gradient(layer, x, torch.ones_like(x), FrozenLayers())
    _, plain = gradient(layer, x, torch.ones_like(x))
    assert torch.equal(g, plain)


@pytest.mark.parametrize("around", [OtherSilu, TwiceTheNorm])
def test_under_a_mode_of_the_users_own_layers_are_left_as_it_runs_them(around):
    layer, x = norm_act(nn.SiLU()).requires_grad_(False), torch.randn(2, 8, 4, 4)

    with around():
        _, g = gradient(layer, x, torch.ones_like(x), FrozenLayers())
        _, plain = gradient(layer, x, torch.ones_like(x))

    assert torch.equal(g, plain)


@pytest.mark.parametrize(
    "last", [F.silu, lambda h: torch.conv2d(F.relu(h), torch.ones(1, 8, 1, 1))]
)
def test_a_gradient_that_frees_the_norms_part_of_the_graph_leaves_the_rest(last):
    norm, x = nn.GroupNorm(2, 8).requires_grad_(False), torch.randn(2, 8, 4, 4)

    def gradients(mode):
        z = x.clone().requires_grad_()
        with mode:
            h = norm(z)
            y = last(h)
            (first,) = torch.autograd.grad(h.square().sum(), z)
            (second,) = torch.autograd.grad(y.sum(), h)
        return first, second

    assert all(map(torch.equal, gradients(FrozenLayers()), gradients(nullcontext())))


def test_graphs_that_a_step_has_dropped_are_not_kept():
    layer, x = stack(), torch.randn(4, 8, 16, 16)
    with meter() as reading, FrozenLayers():
        for _ in range(3):
            layer((2 * x).requires_grad_())
        left = reading.live_bytes

    assert left == 0


def test_module_hooks_see_what_they_would_see():
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


def test_of_two_chains_with_frozen_layers_one_may_be_inside_the_other():
    layer, x = stack(), torch.randn(1, 8, 4, 4, requires_grad=True)

    def gradient(frozen):
        inner = CheckpointedChain(lambda x, i: x + layer(x), 2, plan="graph", frozen=frozen)
        outer = CheckpointedChain(lambda x, i: torch.tanh(inner(x)), 2, frozen=frozen)
        return torch.autograd.grad(outer(x).sum(), x)[0]

    assert torch.equal(gradient("auto"), gradient("off"))


def test_a_compiled_step_is_compiled_whole_as_it_is_without():
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
