"""What the graph of frozen layers keeps, and whose hooks on saved tensors are obeyed."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chainograd import meter
from chainograd.frozen.layers import FrozenLayers
from tests.chainograd.frozen.stacks import alike, derivatives, gradient, kept, stack, with_mode

# Torch pads a copy for even kernels, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def test_a_frozen_stack_keeps_the_norms_inputs_and_nothing_else():
    n = 4 * 8 * 16 * 16 * 4
    layer, x = stack(), torch.randn(4, 8, 16, 16, requires_grad=True)

    small = 8 * 4 * 100  # statistics, scales and shifts
    # torch: both norms' results and both activations', and one convolution's result
    assert 5 * n <= kept(layer, x) <= 5 * n + small
    assert n <= kept(with_mode(layer), x) <= n + small


def test_a_frozen_stack_keeps_no_more_under_a_default_device():
    n = 4 * 8 * 16 * 16 * 4
    layer, x = stack(), torch.randn(4, 8, 16, 16, requires_grad=True)

    with torch.device("cpu"):
        assert kept(with_mode(layer), x) <= n + 8 * 4 * 100


def test_under_autocast_a_frozen_stack_keeps_half_as_much():
    n = 4 * 8 * 16 * 16 * 2
    x = torch.randn(4, 8, 16, 16, requires_grad=True, dtype=torch.bfloat16)

    with torch.autocast("cpu", torch.bfloat16):
        assert n <= kept(with_mode(stack()), x) <= n + 8 * 4 * 100
        assert kept(stack(), x) >= 5 * n


@pytest.mark.parametrize("make", ["channels last", "strided"])
def test_a_frozen_stack_keeps_no_more_of_inputs_in_another_memory_order(make):
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


def test_batch_norm_in_eval_mode_keeps_nothing():
    layer = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8).eval()).requires_grad_(False)
    x = torch.randn(4, 8, 16, 16, requires_grad=True)

    assert kept(with_mode(layer), x) < 1000 < kept(layer, x)


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.RMSNorm(8), nn.LayerNorm(8)], ids=str)
def test_torch_itself_keeps_no_more_than_the_input_of_these(layer):
    x = torch.randn(64, 8, requires_grad=True)

    assert kept(layer.requires_grad_(False), x) <= 64 * 4 * 2


def test_weights_that_autocast_casts_are_not_kept_twice():
    layer, x = nn.Conv2d(64, 64, 3).requires_grad_(False), torch.randn(1, 64, 3, 3).requires_grad_()

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert kept(with_mode(layer), x) < 1000
        assert kept(layer, x) > 64 * 64 * 9 * 2


def test_saved_tensor_hooks_stay_disabled_where_the_user_disabled_them():
    layer, x = stack(), torch.randn(2, 8, 16, 16, requires_grad=True)

    with torch.autograd.graph.disable_saved_tensors_hooks("no hooks here"):
        with_mode(layer)(x)
        with pytest.raises(RuntimeError, match="no hooks here"):
            torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t).__enter__()


def test_saved_tensor_hooks_of_the_user_get_the_tensors_that_torch_saves():
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
        RuntimeError, match=r"in place before the backward|modified by an inplace operation"
    ):
        y.sum().backward()


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
