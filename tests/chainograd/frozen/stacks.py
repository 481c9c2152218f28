"""Stacks of frozen layers, and what their graphs hold."""

import copy
from contextlib import nullcontext

import torch
from torch import nn

from chainograd import meter
from chainograd.frozen.layers import FrozenLayers


class Modulated(nn.Module):
    """A norm, its scale and shift from a conditioning, an activation."""

    def __init__(self, act):
        super().__init__()
        self.norm, self.act = nn.GroupNorm(2, 8), act
        self.scale, self.shift = torch.randn(2, 8, 1, 1), torch.randn(2, 8, 1, 1)

    def forward(self, x):
        return self.act(self.norm(x) * (1 + self.scale.to(x)) + self.shift.to(x))


def norm_act(act):
    return nn.Sequential(nn.GroupNorm(2, 8), act)


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


def stack():
    return nn.Sequential(
        nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1),
    ).requires_grad_(False)  # fmt: skip


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


def alike(a, b):
    return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
