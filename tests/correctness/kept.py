"""Tensors that a step keeps outside the state: exact, or refused if a gradient would be lost."""

from __future__ import annotations

import torch
from torch import nn

from tests.correctness.case import M, Values, case, gradients, leaf, square
from tests.correctness.ways import Way

LOST = (
    "When a step runs again, no gradient would reach what the kept tensor was computed from."
    " Compute it before the chain, or carry it in the state."
)


def _kept_at(first: int, run: Way) -> Values:
    net, embed, condition, x = nn.Linear(8, 8), nn.Linear(3, 8), torch.randn(4, 3), leaf(4, 8)
    kept = {}

    def step(x, i):
        if i >= first and "e" not in kept:
            kept["e"] = torch.sin(embed(condition))
        return torch.tanh(net(x) + (kept["e"] if i >= first else 0))

    return gradients(square(run(step, M + 1, x)), net=net, embed=embed, x=x)


@case(expected="raises", why=LOST)
def an_embedding_kept_at_step_0(run: Way) -> Values:
    """A step computes an embedding once, in step 0, and keeps it."""
    return _kept_at(0, run)


@case(expected="raises", why=LOST)
def an_embedding_kept_at_step_1(run: Way) -> Values:
    """The same, first needed in step 1."""
    return _kept_at(1, run)


@case("TeaCache#22", expected="raises", why=LOST)
def an_embedding_kept_at_step_3(run: Way) -> Values:
    """The same, first needed in step 3."""
    return _kept_at(3, run)


@case(expected="raises", why=LOST)
def an_embedding_made_anew_at_step_3(run: Way) -> Values:
    """Step 3 computes the embedding whenever it runs; later steps use the kept embedding."""
    net, embed, condition, x = nn.Linear(8, 8), nn.Linear(3, 8), torch.randn(4, 3), leaf(4, 8)
    kept = {}

    def step(x, i):
        if i == 3:
            kept["e"] = torch.sin(embed(condition))
        return torch.tanh(net(x) + (kept["e"] if i >= 3 else 0))

    return gradients(square(run(step, M + 3, x)), net=net, embed=embed, x=x)


@case("DeepCache#12", expected="raises", why=LOST)
def features_that_the_next_step_uses_again(run: Way) -> Values:
    """DeepCache: from step 2 on, even steps compute deep features and odd steps reuse them."""
    shallow, deep, x, kept = nn.Linear(8, 8), nn.Linear(8, 8), leaf(4, 8), {}

    def step(x, i):
        h = shallow(x)
        if i < 2 or i % 2 == 0:
            kept["deep"] = torch.tanh(deep(h))
        return torch.tanh(h + kept["deep"])

    return gradients(square(run(step, M + 1, x)), shallow=shallow, deep=deep, x=x)


@case()
def a_table_kept_without_gradients(run: Way) -> Values:
    """A rotary table is computed in step 0 under `no_grad` and kept."""
    net, x, kept = nn.Linear(8, 8), leaf(4, 8), {}

    def step(x, i):
        if "table" not in kept:
            with torch.no_grad():
                kept["table"] = torch.cos(torch.arange(8.0) / 8)
        return torch.tanh(net(x) * kept["table"])

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def an_embedding_as_an_argument(run: Way) -> Values:
    """The embedding is computed before the sampler and passed to every step."""
    net, embed, x = nn.Linear(8, 8), nn.Linear(3, 8), leaf(4, 8)
    y = run(lambda x, i, e: torch.tanh(net(x) + e), M, x, embed(torch.randn(4, 3)))
    return gradients(square(y), net=net, embed=embed, x=x)


@case()
def an_embedding_that_a_closure_holds(run: Way) -> Values:
    """The same in a closure."""
    net, embed, x = nn.Linear(8, 8), nn.Linear(3, 8), leaf(4, 8)
    e = embed(torch.randn(4, 3))
    y = run(lambda x, i: torch.tanh(net(x) + e), M, x)
    return gradients(square(y), net=net, embed=embed, x=x)


@case(expected="raises", why="Budget measurements and reruns increase the counter.")
def a_counter_and_a_byte_budget(run: Way) -> Values:
    """A step counts its calls, and the chain has a byte budget."""
    net, x, calls = nn.Linear(4, 4), leaf(3, 4), [0]

    def step(x, i):
        calls[0] += 1
        return torch.tanh(net(x) * (1 + calls[0] / 10))

    return gradients(square(run(step, M, x, plan="1GiB")), net=net, x=x)


@case()
def a_log_that_grows(run: Way) -> Values:
    """A step appends numbers to a list, which does not affect its result."""
    net, x, log = nn.Linear(4, 4), leaf(3, 4), []

    def step(x, i):
        x = torch.tanh(net(x))
        log.append(x.detach().norm().item())
        return x

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def an_average_in_a_buffer_in_eval(run: Way) -> Values:
    """An observer averages its input in a buffer, also in eval mode, and changes no state."""

    class Observer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x, i):
            y = self.layer(x)
            with torch.no_grad():
                self.seen.mul_(0.9).add_(0.1 * y.mean(0))
            return torch.tanh(y)

    net, x = Observer().eval(), leaf(3, 4)
    values = gradients(square(run(net, M, x)), net=net, x=x)
    return {**values, "seen": net.seen.clone()}


@case()
def a_codebook_that_every_step_moves(run: Way) -> Values:
    """Vector quantization: in training, a buffer moves towards its input and is then used."""

    class Quantizer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("codes", torch.randn(6, 4))

        def forward(self, x, i):
            h = self.layer(x)
            nearest = torch.cdist(h, self.codes).argmin(1)
            with torch.no_grad():
                self.codes[nearest] = 0.9 * self.codes[nearest] + 0.1 * h
            q = self.codes[nearest].clone()
            return torch.tanh(h + (q - h).detach() + 0.1 * h)

    net, x = Quantizer(), leaf(3, 4)
    values = gradients(square(run(net, M, x)), net=net, x=x)
    return {**values, "codes": net.codes.clone()}


@case(expected="raises", why="The leaf needs a gradient, and the chain cannot find it.")
def a_leaf_that_a_step_makes(run: Way) -> Values:
    """Each step makes a leaf and keeps it; its `.grad` is compared afterwards."""
    net, x, leaves = nn.Linear(4, 4), leaf(3, 4), {}

    def step(x, i):
        leaves[i] = torch.zeros(3, 4, requires_grad=True)
        return torch.tanh(net(x) + leaves[i])

    values = gradients(square(run(step, M, x)), net=net, x=x)
    return {**values, **{f"leaf {i}": leaves[i].grad for i in range(M)}}
