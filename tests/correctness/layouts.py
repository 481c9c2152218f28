"""States whose entries lie in memory in another order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.correctness.case import M, Values, case, gradients, square
from tests.correctness.ways import Way


def _images(*shape: int) -> Tensor:
    form = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return torch.randn(shape).to(memory_format=form).requires_grad_()


def _of(run: Way, net: nn.Module, x: Tensor, after: Callable = torch.tanh) -> Values:
    return gradients(square(run(lambda x, i: after(net(x)), M, x)), net=net, x=x)


def _statistics(norm: nn.Module) -> nn.Module:
    norm.running_mean.normal_()
    return norm.eval()


@case("pytorch#64039")
def batch_norm_in_eval(run: Way) -> Values:
    """`channels_last`, a batch of one, `nn.BatchNorm2d` in eval mode."""
    return _of(run, _statistics(nn.BatchNorm2d(8)), _images(1, 8, 4, 4))


@case("pytorch#107199")
def batch_norm_in_training(run: Way) -> Values:
    """`channels_last`, a batch of one, `nn.BatchNorm2d` in training mode."""
    return _of(run, nn.BatchNorm2d(8), _images(1, 8, 4, 4))


@case("pytorch#115940")
def group_norm(run: Way) -> Values:
    """`channels_last`, a batch of one, `nn.GroupNorm`."""
    return _of(run, nn.GroupNorm(2, 8), _images(1, 8, 4, 4))


@case()
def convolution(run: Way) -> Values:
    """`channels_last`, a batch of one, a convolution."""
    return _of(run, nn.Conv2d(8, 8, 3, padding=1), _images(1, 8, 4, 4))


@case()
def one_channel(run: Way) -> Values:
    """`channels_last`, one channel, a convolution and a batch norm."""
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1))
    return _of(run, net, _images(3, 1, 4, 4))


@case()
def batch_norm_in_3d(run: Way) -> Values:
    """`channels_last_3d`, a batch of one, `nn.BatchNorm3d` in eval mode."""
    return _of(run, _statistics(nn.BatchNorm3d(4)), _images(1, 4, 3, 4, 4))


@case()
def convolution_and_group_norm_in_3d(run: Way) -> Values:
    """`channels_last_3d`, a batch of one, a convolution and a group norm."""
    net = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.GroupNorm(2, 4))
    return _of(run, net, _images(1, 4, 3, 4, 4))


@case()
def a_cotangent_in_channels_last(run: Way) -> Values:
    """The loss's gradient is in `channels_last`, and the state is contiguous."""
    net, x = _statistics(nn.BatchNorm2d(8)), torch.randn(1, 8, 4, 4, requires_grad=True)
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    loss = square(y.to(memory_format=torch.channels_last).permute(0, 2, 3, 1))
    return gradients(loss, net=net, x=x)


@case()
def a_network_in_channels_last(run: Way) -> Values:
    """Weights in `channels_last`, a contiguous first state, and later states in any layout."""
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 1))
    net = net.to(memory_format=torch.channels_last)
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    return _of(run, net, x)


@case()
def a_transposed_state(run: Way) -> Values:
    """A step returns a transposed view, and the next step multiplies it."""
    net, x = nn.Linear(4, 4), torch.randn(4, 4, requires_grad=True)
    return _of(run, net, x, lambda y: torch.tanh(y).t())
