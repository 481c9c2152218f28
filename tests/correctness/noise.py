"""Steps that draw: replayed if the stream can be known, refused if not."""

from __future__ import annotations

import itertools
import random

import numpy
import torch
import torch.nn.functional as F
from torch import nn

from tests.correctness.case import M, Values, case, gradients, leaf, square
from tests.correctness.ways import Way


@case()
def the_global_stream(run: Way) -> Values:
    """`torch.randn_like` in every step; the stream ends where the loop's does."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        return torch.tanh(net(x)) * (1 + 0.3 * torch.randn_like(x))

    y = run(step, M, x)
    drawn_next = torch.rand(2)
    return {**gradients(square(y), net=net, x=x), "drawn next": drawn_next}


@case()
def a_named_generator(run: Way) -> Values:
    """Noise of a `torch.Generator`, which is named to the chain by `generators=[g]`."""
    net, x, g = nn.Linear(4, 4), leaf(3, 4), torch.Generator().manual_seed(1)

    def step(x, i):
        return torch.tanh(net(x)) * (1 + 0.3 * torch.randn(3, 4, generator=g))

    return gradients(square(run(step, M, x, generators=[g])), net=net, x=x)


@case(expected="raises", why="The chain does not know which generators a step draws from.")
def an_unnamed_generator(run: Way) -> Values:
    """The same generator, not named to any method."""
    net, x, g = nn.Linear(4, 4), leaf(3, 4), torch.Generator().manual_seed(1)

    def step(x, i):
        return torch.tanh(net(x)) * (1 + 0.3 * torch.randn(3, 4, generator=g))

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def noise_of_python(run: Way) -> Values:
    """`random.gauss` scales the input of every activation."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(net(x) * random.gauss(1, 0.3)), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def noise_of_numpy(run: Way) -> Values:
    """`numpy.random.randn` multiplies every step."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        return torch.tanh(net(x)) * (1 + 0.3 * torch.from_numpy(numpy.random.randn(3, 4)).float())

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def noise_from_step_2_on(run: Way) -> Values:
    """Torch's and numpy's streams are first drawn from in step 2."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        h = net(x)
        if i >= 2:
            h = h * (1 + 0.3 * torch.randn_like(h)) * numpy.random.rand()
        return torch.tanh(h)

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def dropout(run: Way) -> Values:
    """`nn.Dropout` in training mode."""
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 4)), leaf(3, 4)
    return gradients(square(run(lambda x, i: x + torch.tanh(net(x)), M, x)), net=net, x=x)


@case()
def rrelu(run: Way) -> Values:
    """`nn.RReLU` in training mode, which draws noise inside its kernel."""
    net, x = nn.Sequential(nn.Linear(4, 8), nn.RReLU(), nn.Linear(8, 4)), leaf(3, 4)
    return gradients(square(run(lambda x, i: x + net(x), M, x)), net=net, x=x)


@case(expected="raises", why="The chain does not know which generators a step draws from.")
def an_unnamed_permutation(run: Way) -> Values:
    """A step permutes with an unnamed generator; sums of states do not change."""
    w, x, g = leaf(8, 8), leaf(4, 8), torch.Generator().manual_seed(1)

    def step(x, i):
        return torch.tanh(x @ w)[:, torch.randperm(8, generator=g)]

    return gradients(square(run(step, M, x)), w=w, x=x)


@case(expected="raises", why="No method replays a `numpy.random.Generator`.")
def an_unnamed_permutation_of_numpy(run: Way) -> Values:
    """The same with `numpy.random.default_rng`, on an image's channels."""
    net, x, g = nn.Conv2d(4, 4, 3, padding=1), leaf(1, 4, 5, 5), numpy.random.default_rng(1)

    def step(x, i):
        return torch.tanh(net(x))[:, torch.from_numpy(g.permutation(4))]

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def a_permutation_of_the_global_stream(run: Way) -> Values:
    """A step shuffles its batch with `torch.randperm`."""
    net, x = nn.Linear(4, 4), leaf(6, 4)
    y = run(lambda x, i: torch.tanh(net(x))[torch.randperm(6)], M, x)
    return gradients(square(y), net=net, x=x)


@case(
    expected="raises", why="Reruns increase the counter: the step depends on more than its index."
)
def a_roll_by_a_counter(run: Way) -> Values:
    """A step counts its calls and rolls the state by the count."""
    w, x, calls = leaf(8, 8), leaf(4, 8), [0]

    def step(x, i):
        calls[0] += 1
        return torch.tanh(x.roll(calls[0] ** 2, dims=1) @ w)

    return gradients(square(run(step, M, x)), w=w, x=x)


@case()
def noise_in_a_backward_hook(run: Way) -> Values:
    """A hook in the step adds noise to the gradient during the backward pass."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        h = net(x) * (1 + 0.3 * torch.randn_like(x))
        if h.requires_grad:
            h.register_hook(lambda g: g + 0.1 * torch.randn_like(g))
        return torch.tanh(h)

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def a_generator_made_in_every_step(run: Way) -> Values:
    """A step makes a generator and seeds it with its index."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        g = torch.Generator().manual_seed(i)
        return torch.tanh(net(x) * (1 + 0.3 * torch.randn(3, 4, generator=g)))

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def a_seed_set_in_every_step(run: Way) -> Values:
    """A step seeds the global stream with its index; the stream ends where the loop's does."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        torch.manual_seed(i)
        return torch.tanh(net(x) * (1 + 0.3 * torch.randn(3, 4)))

    y = run(step, M, x)
    drawn_next = torch.rand(2)
    return {**gradients(square(y), net=net, x=x), "drawn next": drawn_next}


@case(expected="raises", why="No method replays a `random.Random`.")
def an_unnamed_object_of_python(run: Way) -> Values:
    """`random.Random(1)` decides which channels are flipped."""
    net, x, g = nn.Linear(4, 4), leaf(3, 4), random.Random(1)

    def step(x, i):
        return torch.tanh(net(x)).flip(1) if g.random() < 0.5 else torch.tanh(net(x))

    return gradients(square(run(step, 2 * M, x)), net=net, x=x)


@case()
def gumbel_softmax(run: Way) -> Values:
    """`F.gumbel_softmax(hard=True)`: the choice is discrete, its gradient is not."""
    net, table, x = nn.Linear(4, 6), leaf(6, 4), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(x + F.gumbel_softmax(net(x), hard=True) @ table), M, x)
    return gradients(square(y), net=net, table=table, x=x)


@case(expected="raises", why="The chain does not know which generators a step draws from.")
def a_gradient_mask_of_an_unnamed_generator(run: Way) -> Values:
    """A straight-through mask changes only the gradient; the states of a rerun are equal."""
    net, x, g = nn.Linear(4, 4), leaf(3, 4), torch.Generator().manual_seed(1)

    def step(x, i):
        h = net(x)
        kept = h * torch.bernoulli(torch.full((3, 4), 0.5), generator=g)
        return torch.tanh(h.detach() + (kept - kept.detach()))

    return gradients(square(run(step, M, x)), net=net, x=x)


@case(expected="raises", why="An iterator cannot return the same noise again.")
def noise_from_an_iterator(run: Way) -> Values:
    """A step takes its noise from an iterator over precomputed noise."""
    net, x, noises = nn.Linear(4, 4), leaf(3, 4), itertools.cycle(torch.randn(7, 3, 4))
    y = run(lambda x, i: torch.tanh(net(x) * (1 + 0.3 * next(noises))), M, x)
    return gradients(square(y), net=net, x=x)


@case(expected="right*", why="Each sampler first sums its own gradients of a weight.")
def two_samplers_that_draw(run: Way) -> Values:
    """Two samplers draw from the global stream one after the other, and one loss sees both."""
    net, x, z = nn.Linear(4, 4), leaf(3, 4), leaf(3, 4)

    def step(x, i):
        return torch.tanh(net(x) * (1 + 0.3 * torch.randn_like(x)))

    loss = square(run(step, M, x)) + torch.rand(()) * square(run(step, M, z))
    return gradients(loss, net=net, x=x, z=z)
