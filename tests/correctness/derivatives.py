"""Gradients inside of steps, cut gradients, higher derivatives, transforms, losses on the way."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.correctness.case import M, Values, case, gradients, grads_of, leaf, square
from tests.correctness.ways import Way

CUT = (
    "The loop trains the head and silently leaves out the network's gradients; the chain raises if"
    " a trained tensor is cut off."
)
TWICE = "Second derivatives are summed in a different order."


@case()
def guidance(run: Way) -> Values:
    """Classifier guidance: `autograd.grad` of a frozen classifier at a detached leaf."""
    net, classifier, x = nn.Linear(4, 4), nn.Linear(4, 1).requires_grad_(False), leaf(3, 4)

    def step(x, i):
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(classifier(torch.tanh(z)).sum(), z)
        return torch.tanh(net(x)) + 0.3 * g

    return gradients(square(run(step, M, x)), net=net, x=x)


@case("pytorch#32005, #102223")
def guidance_with_a_graph(run: Way) -> Values:
    """`autograd.grad(…, x, create_graph=True)` at the state itself, with a trained classifier."""
    net, energy, x = nn.Linear(4, 4), nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        with torch.enable_grad():
            (g,) = torch.autograd.grad(torch.tanh(energy(x)).sum(), x, create_graph=True)
        return torch.tanh(net(x)) + 0.3 * g

    return gradients(square(run(step, M, x)), net=net, energy=energy, x=x)


@case("higher#22")
def langevin_steps_of_an_energy(run: Way) -> Values:
    """Langevin dynamics of a trained energy; the step makes the state require a gradient."""
    energy = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))

    def step(x, i):
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            (g,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
        return x - 0.1 * g + 0.05 * torch.randn_like(x)

    x = leaf(3, 4)
    return gradients(square(run(step, M, x)), energy=energy, x=x)


@case("MAML-Pytorch")
def steps_of_gradient_descent(run: Way) -> Values:
    """MAML: the state is a network's weights, and a step descends with `torch.func.grad`."""
    inputs, targets, rates = torch.randn(6, 4), torch.randn(6, 2), leaf(2)
    w = leaf(4, 2)

    def loss(w):
        return (torch.tanh(inputs @ w) - targets).square().mean()

    y = run(lambda w, i: w - rates.exp().mean() * torch.func.grad(loss)(w), M, w)
    return gradients(square(y), w=w, rates=rates)


@case()
def posterior_sampling_on_a_detached_leaf(run: Way) -> Values:
    """DPS: guidance by a frozen denoiser's prediction at a leaf that the step makes."""
    net, shift, x = nn.Linear(4, 4).requires_grad_(False), leaf(4), leaf(3, 4)
    measured = torch.randn(3, 4)

    def step(x, i):
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (g,) = torch.autograd.grad((z - net(z) - measured).square().sum(), z)
        return x - 0.1 * net(x) - 0.05 * g + 0.1 * shift

    return gradients(square(run(step, M, x)), shift=shift, x=x)


@case()
def posterior_sampling_with_a_trained_denoiser(run: Way) -> Values:
    """DPS with a trained denoiser: the prediction at a detached leaf also continues the step."""
    net, x, measured = nn.Linear(4, 4), leaf(3, 4), torch.randn(3, 4)

    def step(x, i):
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            predicted = torch.tanh(net(z))
            (g,) = torch.autograd.grad(
                (z - predicted - measured).square().sum(), z, retain_graph=True
            )
        return x - 0.1 * predicted - 0.05 * g

    return gradients(square(run(step, M, x)), net=net, x=x)


@case(expected="raises", why=CUT)
def a_step_under_no_grad(run: Way) -> Values:
    """The step is decorated with `torch.no_grad()`; a head after the sampler learns."""
    net, head, x = nn.Linear(4, 4), nn.Linear(4, 1), leaf(3, 4)
    step = torch.no_grad()(lambda x, i: torch.tanh(net(x)))
    return gradients(square(head(run(step, M, x))), net=net, head=head, x=x)


@case(expected="raises", why=CUT)
def an_object_whose_call_is_under_no_grad(run: Way) -> Values:
    """A pipeline object whose `__call__` is decorated with `torch.no_grad()`."""
    net, head, x = nn.Linear(4, 4), nn.Linear(4, 1), leaf(3, 4)

    class Pipe:
        def __init__(self):
            self.net = net

        @torch.no_grad()
        def __call__(self, x, i):
            return torch.tanh(self.net(x))

    return gradients(square(head(run(Pipe(), M, x))), net=net, head=head, x=x)


@case(expected="raises", why=CUT)
def a_step_that_takes_data(run: Way) -> Values:
    """A step returns `.data` of its result."""
    net, head, x = nn.Linear(4, 4), nn.Linear(4, 1), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(net(x)).data, M, x)
    return gradients(square(head(y)), net=net, head=head, x=x)


@case()
def a_part_that_is_detached(run: Way) -> Values:
    """A step detaches the network's input, as straight-through tricks do."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: 0.9 * x + torch.tanh(net(x.detach())), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def a_trajectory(run: Way) -> Values:
    """Losses on all states, including the first one."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    states = run.sampler(lambda x, i: torch.tanh(net(x) + i / 10), M).trajectory(x)
    loss = torch.stack([(i + 1) * square(y) for i, y in enumerate(states)]).sum()
    return gradients(loss, net=net, x=x)


@case()
def a_trajectory_of_which_one_state_is_seen(run: Way) -> Values:
    """A loss on one intermediate state only."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    states = run.sampler(lambda x, i: torch.tanh(net(x) + i / 10), M).trajectory(x)
    return gradients(square(states[2]), net=net, x=x)


@case(expected="right*", why=TWICE)
def a_gradient_penalty(run: Way) -> Values:
    """Double backward: the loss includes the norm of the sample's gradient."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    (g,) = torch.autograd.grad(square(y), x, create_graph=True)
    return gradients(g.square().sum(), net=net, x=x)


@case(expected="right*", why=TWICE)
def a_hessian_times_a_vector(run: Way) -> Values:
    """Two calls of `autograd.grad`; the second differentiates a product with the first result."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    (g,) = torch.autograd.grad(square(y), net.weight, create_graph=True)
    (h,) = torch.autograd.grad((g * torch.ones(4, 4)).sum(), net.weight)
    return {"loss": y.detach(), "g": g.detach(), "h": h}


@case()
def the_gradient_of_torch_func(run: Way) -> Values:
    """`torch.func.grad` of the sampler."""
    net, x = nn.Linear(4, 4), torch.randn(3, 4)
    sampler = run.sampler(lambda x, i: torch.tanh(net(x)), M)
    return {"x": torch.func.grad(lambda x: square(sampler(x)))(x).detach()}


@case()
def vmap_over_the_sampler(run: Way) -> Values:
    """`torch.func.vmap` over seeds, with an ordinary gradient."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    sampler = run.sampler(lambda x, i: torch.tanh(net(x)), M)
    return gradients(square(torch.func.vmap(sampler)(x)), net=net, x=x)


@case()
def gradients_per_sample(run: Way) -> Values:
    """`vmap` of `torch.func.grad` with respect to the weights."""
    net, x = nn.Linear(4, 4), torch.randn(3, 4)

    def loss(weights, x):
        def step(x, i):
            return torch.tanh(torch.func.functional_call(net, weights, x))

        return square(run(step, M, x))

    weights = {name: p.detach() for name, p in net.named_parameters()}
    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)


@case()
def forward_mode(run: Way) -> Values:
    """`torch.func.jvp` of the sampler."""
    net, x = nn.Linear(4, 4), torch.randn(3, 4)
    sampler = run.sampler(lambda x, i: torch.tanh(net(x)), M)
    y, tangent = torch.func.jvp(sampler, (x,), (torch.ones(3, 4),))
    return {"y": y.detach(), "tangent": tangent.detach()}


@case()
def a_transform_inside_of_a_step(run: Way) -> Values:
    """`torch.func.vmap` inside the step, of a function that uses a weight."""
    w, x = leaf(4, 4), leaf(3, 4)
    y = run(lambda x, i: torch.func.vmap(lambda row: torch.tanh(w @ row))(x), M, x)
    return gradients(square(y), w=w, x=x)


@case()
def a_gradient_of_one_weight_alone(run: Way) -> Values:
    """`autograd.grad` for one weight leaves the `.grad` of the other weights unchanged."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    (g,) = torch.autograd.grad(square(y), net.bias)
    return {"g": g, "weight": net.weight.grad, "x": x.grad}


@case()
def steps_without_gradients(run: Way) -> Values:
    """Truncation by hand: early steps run under `torch.set_grad_enabled(False)`."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        with torch.set_grad_enabled(i >= 3):
            return torch.tanh(net(x))

    return gradients(square(run(step, M, x)), net=net, x=x)


@case(expected="right*", why="The inner sampler first sums its own gradients of a weight.")
def a_sampler_in_a_sampler(run: Way) -> Values:
    """Each step runs a short sampler of its own."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: run(lambda z, j: torch.tanh(net(z) + i / 10 + j), 2, x), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def a_sampler_in_a_checkpoint(run: Way) -> Values:
    """`torch.utils.checkpoint` around the sampler and the loss's network."""
    net, head, x = nn.Linear(4, 4), nn.Linear(4, 1), leaf(3, 4)

    def sampled(x):
        return head(run(lambda x, i: torch.tanh(net(x)), M, x))

    y = checkpoint(sampled, x, use_reentrant=False)
    return gradients(square(y), net=net, head=head, x=x)


@case()
def a_gradient_kept_on_the_way(run: Way) -> Values:
    """A step calls `retain_grad()` on its input, whose `.grad` is compared."""
    net, x, kept = nn.Linear(4, 4), leaf(3, 4), {}

    def step(x, i):
        if x.requires_grad:
            x.retain_grad()
        kept[i] = x
        return torch.tanh(net(x))

    values = gradients(square(run(step, M, x)), net=net, x=x)
    return {**values, "kept": kept[2].grad}


@case()
def an_implicit_layer(run: Way) -> Values:
    """A step finds a fixed point without gradients and computes the gradient in a hook."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    with torch.no_grad():
        net.weight.mul_(0.3)

    def step(x, i):
        with torch.no_grad():
            z = x
            for _ in range(20):
                z = torch.tanh(net(z) + x)
        z = torch.tanh(net(z) + x)
        if z.requires_grad:
            with torch.enable_grad():
                fixed = z.detach().requires_grad_()
                f = torch.tanh(net(fixed) + x)

            def solved(g):
                h = g
                for _ in range(20):
                    h = torch.autograd.grad(f, fixed, h, retain_graph=True)[0] + g
                return h

            z.register_hook(solved)
        return z

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def a_gradient_at_one_state_of_a_trajectory(run: Way) -> Values:
    """`retain_grad()` on a state of a trajectory; losses use it and a later state."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    states = run.sampler(lambda x, i: torch.tanh(net(x)), M).trajectory(x)
    states[2].retain_grad()
    values = gradients(square(states[2]) + square(states[M]), net=net, x=x)
    return {**values, "state": states[2].grad}


@case()
def a_hook_on_one_state_of_a_trajectory(run: Way) -> Values:
    """A hook halves the gradient at a state of a trajectory; the loss is on the last state."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    states = run.sampler(lambda x, i: torch.tanh(net(x)), M).trajectory(x)
    states[2].register_hook(lambda g: g / 2)
    return gradients(square(states[M]) + square(states[2]), net=net, x=x)


@case()
def autograd_grad_at_one_state_of_a_trajectory(run: Way) -> Values:
    """`torch.autograd.grad` of a loss on several states, for one of these states."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    states = run.sampler(lambda x, i: torch.tanh(net(x)), M).trajectory(x)
    (g,) = torch.autograd.grad(square(states[2]) + square(states[M]), states[2])
    return {"state": g}


@case()
def backward_for_some_inputs(run: Way) -> Values:
    """`loss.backward(inputs=[…])` leaves the `.grad` of other tensors unchanged."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    loss = square(run(lambda x, i: torch.tanh(net(x)), M, x))
    loss.backward(inputs=[net.weight])
    return {"loss": loss.detach(), "w": net.weight.grad, "b": net.bias.grad, "x": x.grad}


@case(expected="right*", why="State and captured tensor have separate sums of gradients.")
def a_step_that_sees_where_it_began(run: Way) -> Values:
    """The first state is also in the step's closure, and in the loss."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda z, i: torch.tanh(net(z) + 0.3 * x), M, x)
    return gradients(square(y) + (x * y).sum(), net=net, x=x)


@case(expected="right*", why="The gradients of the two arguments are summed separately.")
def one_tensor_as_two_arguments(run: Way) -> Values:
    """A condition is passed to the sampler twice."""
    net, x, c = nn.Linear(4, 4), leaf(3, 4), leaf(4)
    y = run(lambda x, i, a, b: torch.tanh(net(x) * a + b), M, x, c, c)
    return gradients(square(y), net=net, x=x, c=c)


@case()
def a_log_density(run: Way) -> Values:
    """Hutchinson: the state carries a log-density, which changes by the trace of a Jacobian."""
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), leaf(3, 4)

    def step(state, i):
        x, density = state
        x = x if x.requires_grad else x.requires_grad_()
        noise = torch.randn_like(x)
        v = net(x)
        (g,) = torch.autograd.grad(v, x, noise, create_graph=True)
        return x + 0.2 * v, density - 0.2 * (g * noise).sum(1)

    y, density = run(step, M, (x, torch.zeros(3)))
    return gradients(square(y) + density.sum(), net=net, x=x)


@case()
def a_jvp_in_a_step(run: Way) -> Values:
    """`torch.func.jvp` of the network inside the step, as in consistency models."""
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), leaf(3, 4)

    def step(x, i):
        v, dv = torch.func.jvp(net, (x,), (torch.ones_like(x),))
        return x + 0.2 * v + 0.02 * dv

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def a_backward_pass_in_a_step(run: Way) -> Values:
    """A step optimizes its own leaf with `backward()`; the network is frozen."""
    net, shift, x = nn.Linear(4, 4).requires_grad_(False), leaf(4), leaf(3, 4)

    def step(x, i):
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_()
            net(torch.tanh(z)).square().sum().backward()
        return torch.tanh(net(x) + shift - 0.3 * z.grad)

    return gradients(square(run(step, M, x)), shift=shift, x=x)


@case(expected="raises", why="The step adds to `.grad` again in every rerun.")
def a_backward_pass_in_a_step_that_reaches_weights(run: Way) -> Values:
    """The same with a trained network: each inner `backward()` adds to its `.grad`."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_()
            net(torch.tanh(z)).square().sum().backward()
        return torch.tanh(net(x) - 0.3 * z.grad)

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def losses_of_a_trajectory_one_by_one(run: Way) -> Values:
    """Each state of a trajectory has a `backward()` of its own, with `retain_graph`."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    states = run.sampler(lambda x, i: torch.tanh(net(x)), M).trajectory(x)
    for i in range(1, M + 1):
        square(states[i]).backward(retain_graph=i < M)
    return {"loss": square(states[M]).detach(), **grads_of(net=net, x=x)}


class _Reversed(torch.autograd.Function):
    """Changes the gradient alone, by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.factor, None


@case(expected="raises", why="A rerun uses the changed factor.")
def a_gradient_factor_that_changes_before_backward(run: Way) -> Values:
    """Gradient reversal whose factor is an attribute that the training loop changes."""
    layer, x, factor = nn.Linear(4, 4), leaf(3, 4), [0.5]
    y = run(lambda x, i: _Reversed.apply(torch.tanh(layer(x)), factor[0]), M, x)
    factor[0] = 2.0
    return gradients(square(y), layer=layer, x=x)
