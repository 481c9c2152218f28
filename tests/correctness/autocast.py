"""Autocast around the sampler, inside of it, and islands of float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.correctness.case import M, Values, case, gradients, leaf, square
from tests.correctness.ways import LOOP, UNCACHED, Way

CACHE = (
    "In the loop, autocast's cache shares one cast of a weight between all steps, so the steps'"
    " gradients are summed in low precision. Two results count as right: this loop, and the loop"
    " that clears the cache (`torch.clear_autocast_cache()`) before each step. The chain equals the"
    " second loop."
)


@case(oracles=(LOOP, UNCACHED), why=CACHE)
def bf16_around_the_sampler(run: Way) -> Values:
    """The sampler runs under bfloat16 autocast and `backward()` outside, as torch recommends."""
    net, x = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8)), leaf(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(lambda x, i: x + net(x), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def bf16_in_every_step(run: Way) -> Values:
    """A step opens an autocast region around its network."""
    net, x = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8)), leaf(4, 8)

    def step(x, i):
        with torch.autocast("cpu", torch.bfloat16):
            return x + net(x).float()

    return gradients(square(run(step, M, x)), net=net, x=x)


@case("pytorch#153044")
def a_float32_island(run: Way) -> Values:
    """The sampler runs under bfloat16 autocast, and the step switches autocast off."""
    net, x = nn.Linear(16, 16), leaf(4, 16)

    def step(x, i):
        with torch.autocast("cpu", enabled=False):
            return x + net(torch.tanh(x.float()))

    with torch.autocast("cpu", torch.bfloat16):
        y = run(step, M, x)
    return gradients(square(y), net=net, x=x)


@case("pytorch PR 177287")
def a_float32_island_under_fp16_with_a_large_scale(run: Way) -> Values:
    """The same under float16, with the loss times 65536 as in a GradScaler."""
    net, x = nn.Linear(16, 16), leaf(4, 16)

    def step(x, i):
        with torch.autocast("cpu", enabled=False):
            return x + net(torch.tanh(x.float()))

    with torch.autocast("cpu", torch.float16):
        y = run(step, M, x)
    return gradients(65536 * square(y), net=net, x=x)


@case(oracles=(LOOP, UNCACHED), why=CACHE)
def a_grad_scaler(run: Way) -> Values:
    """Float16 autocast and `torch.amp.GradScaler`, with an optimizer's step."""
    net, x = nn.Linear(8, 8), leaf(4, 8)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with torch.autocast("cpu", torch.float16):
        loss = square(run(lambda x, i: x + torch.tanh(net(x)), M, x))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return {"loss": loss.detach(), "x": x.grad, "weight": net.weight.detach().clone()}


@case("pytorch#112583, #142234", oracles=(LOOP, UNCACHED), why=CACHE)
def a_decorated_forward_inside_of_a_region(run: Way) -> Values:
    """Autocast around the sampler and as a decorator of the network's forward."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        @torch.autocast("cpu", torch.bfloat16)
        def forward(self, x):
            return self.layer(x).float()

    net, x = Net(), leaf(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(lambda x, i: torch.tanh(net(x)), M, x)
    return gradients(square(y), net=net, x=x)


class Scaled(torch.autograd.Function):
    """A linear layer with a derivative written by hand."""

    @staticmethod
    def forward(ctx, x, w):
        """Multiply."""
        ctx.save_for_backward(x, w)
        return x.float() @ w

    @staticmethod
    def backward(ctx, g):
        """Multiply back."""
        x, w = ctx.saved_tensors
        return g.float() @ w.t(), x.t() @ g.float()


class Full(Scaled):
    """The same, in full precision by torch's decorators."""

    forward = staticmethod(
        torch.amp.custom_fwd(Scaled.forward, device_type="cpu", cast_inputs=torch.float32)
    )
    backward = staticmethod(torch.amp.custom_bwd(Scaled.backward, device_type="cpu"))


@case(oracles=(LOOP, UNCACHED), why=CACHE)
def a_custom_function_under_autocast(run: Way) -> Values:
    """A `torch.autograd.Function` with products in its derivative, under bfloat16 autocast."""
    w, x = leaf(8, 8), leaf(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(lambda x, i: torch.tanh(Scaled.apply(x, w)).float(), M, x)
    return gradients(square(y), w=w, x=x)


@case()
def a_custom_function_with_custom_fwd(run: Way) -> Values:
    """The same, decorated with `torch.amp.custom_fwd` and `custom_bwd`."""
    w, x = leaf(8, 8), leaf(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(lambda x, i: torch.tanh(Full.apply(x, w)), M, x)
    return gradients(square(y), w=w, x=x)


@case(oracles=(LOOP, UNCACHED), why=CACHE)
def backward_under_autocast_too(run: Way) -> Values:
    """The iteration and its `backward()` under bfloat16 autocast, with a float32 island."""
    net, x = nn.Linear(8, 8), leaf(4, 8)

    def step(x, i):
        y = net(x).float()
        with torch.autocast("cpu", enabled=False):
            return x + torch.tanh(y @ net.weight)

    with torch.autocast("cpu", torch.bfloat16):
        return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def linear_algebra_under_autocast(run: Way) -> Values:
    """`torch.linalg.solve`, whose derivative multiplies in float32."""
    A, x = leaf(4, 4), leaf(4, 3)

    def step(x, i):
        return torch.tanh(torch.linalg.solve(4 * torch.eye(4) + A, x))

    with torch.autocast("cpu", torch.bfloat16):
        y = run(step, M, x)
    return gradients(square(y), A=A, x=x)


@case(oracles=(LOOP, UNCACHED), why=CACHE)
def attention_under_autocast(run: Way) -> Values:
    """A `nn.TransformerEncoderLayer` in eval mode under bfloat16 autocast."""
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = leaf(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(lambda x, i: x + net(x).float(), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def a_bilinear_layer_under_autocast(run: Way) -> Values:
    """`F.bilinear`, which autocast does not handle and whose backward pass multiplies."""
    w, x = leaf(6, 6, 6), leaf(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(lambda x, i: torch.tanh(F.bilinear(x, x, w)), M, x)
    return gradients(square(y), w=w, x=x)


@case(oracles=(LOOP, UNCACHED), why=CACHE)
def autocast_in_some_steps(run: Way) -> Values:
    """A step runs under bfloat16 autocast while its index is small."""
    net, x = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8)), leaf(4, 8)

    def step(x, i):
        with torch.autocast("cpu", torch.bfloat16, enabled=i < 3):
            return x + net(x).float()

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def autocast_without_a_cache(run: Way) -> Values:
    """`torch.autocast(cache_enabled=False)` around the sampler."""
    net, x = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8)), leaf(4, 8)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        y = run(lambda x, i: x + net(x), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def backward_under_another_autocast(run: Way) -> Values:
    """The sampler runs in float32, `backward()` under bfloat16 autocast."""
    w, x = leaf(8, 8), leaf(4, 8)
    loss = square(run(lambda x, i: torch.tanh(Scaled.apply(x, w)), M, x))
    with torch.autocast("cpu", torch.bfloat16):
        return gradients(loss, w=w, x=x)
