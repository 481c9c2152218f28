"""A normalised tensor made again from the norm's input, to the bit, or refused."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chainograd.errors import ChangedTensorError
from chainograd.frozen.layers import FrozenLayers
from chainograd.frozen.recompute import recomputation_of_norm
from tests.chainograd.frozen.stacks import gradient, kept, with_mode

# Torch pads a copy for even kernels, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def test_a_norm_is_recomputed_from_the_tensors_that_its_graph_node_saves():
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


@pytest.mark.parametrize("cast", [True, False])
def test_a_norm_is_recomputed_under_the_autocast_of_its_first_run(cast):
    # No norm of the CPU's is cast; a product of matrices stands for those that CUDA casts.
    x = torch.randn(2, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        recomputation = recomputation_of_norm(object(), x, lambda x: x @ x, ())

    with torch.autocast("cpu", torch.bfloat16, enabled=not cast):
        assert recomputation.result().dtype == (torch.bfloat16 if cast else torch.float32)


def test_the_result_of_a_norm_that_was_changed_in_place_is_not_recomputed():
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
