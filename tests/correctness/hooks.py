"""Hooks: called when, as often and with the same tensors as in the loop."""

from __future__ import annotations

import torch
from torch import nn

from tests.correctness.case import M, Values, case, gradients, grads_of, leaf, square
from tests.correctness.ways import Way

OUTSIDE = "A tensor that a step computed leaves the sampler outside the state."


class TwoBranches(nn.Module):
    """A network of which a sampler uses one half."""

    def __init__(self):
        super().__init__()
        self.used, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, i):
        """Use one half."""
        return torch.tanh(self.used(x))


@case("pytorch#11751")
def clamped_gradients_of_used_and_unused_weights(run: Way) -> Values:
    """`p.register_hook(clamp)` on all parameters, some of which are never used."""
    net, x = TwoBranches(), leaf(3, 4)
    for p in net.parameters():
        p.register_hook(lambda g: g.clamp(-0.1, 0.1))
    return gradients(square(run(net, M, x)), net=net, x=x)


@case("pytorch#60796, #58511")
def hooks_after_accumulation(run: Way) -> Values:
    """`register_post_accumulate_grad_hook` on all parameters: which are called, and with what."""
    net, x, called = TwoBranches(), leaf(3, 4), {}
    for name, p in net.named_parameters():
        p.register_post_accumulate_grad_hook(
            lambda p, name=name: called.setdefault(name, []).append(p.grad.norm().item())
        )
    values = gradients(square(run(net, M, x)), net=net, x=x)
    return {**values, "called": called}


@case()
def an_optimizer_in_the_backward_pass(run: Way) -> Values:
    """A hook after accumulation updates the weight and frees its gradient."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def update(p):
        with torch.no_grad():
            p -= 0.1 * p.grad
        p.grad = None

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(update)
    values = gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), x=x)
    return {**values, "weight": net.weight.detach().clone(), "bias": net.bias.detach().clone()}


@case()
def how_often_a_hook_of_a_weight_is_called(run: Way) -> Values:
    """A tensor hook on a weight records the gradients that it sees."""
    net, x, norms = nn.Linear(4, 4), leaf(3, 4), []
    net.weight.register_hook(lambda g: norms.append(g.norm().item()))
    values = gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net, x=x)
    return {**values, "norms": norms}


@case()
def full_backward_hooks(run: Way) -> Values:
    """A `register_full_backward_hook` halves the gradient and counts its calls."""
    net, x, calls = nn.Linear(4, 4), leaf(3, 4), [0]

    def halved(module, grad_input, grad_output):
        calls[0] += 1
        return tuple(g / 2 for g in grad_input)

    net.register_full_backward_hook(halved)
    values = gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net, x=x)
    return {**values, "calls": calls[0]}


@case()
def full_backward_pre_hooks(run: Way) -> Values:
    """A `register_full_backward_pre_hook` clips the gradient."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    net.register_full_backward_pre_hook(lambda module, g: tuple(h.clamp(-0.5, 0.5) for h in g))
    return gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net, x=x)


@case()
def forward_hooks(run: Way) -> Values:
    """A forward hook adds a trained shift to a layer's result."""
    net, x, shift = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), leaf(3, 4), leaf(8)
    net[0].register_forward_hook(lambda module, args, y: y + shift)
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    return gradients(square(y), net=net, x=x, shift=shift)


@case()
def a_hook_on_what_a_step_computes(run: Way) -> Values:
    """`h.register_hook` inside the step, without checking that `h` requires a gradient."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        h = net(x)
        h.register_hook(lambda g: g.clamp(-0.2, 0.2))
        return torch.tanh(h)

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def hooks_on_the_first_and_the_last_state(run: Way) -> Values:
    """Tensor hooks on the sampler's input and on its result."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    x.register_hook(lambda g: 2 * g)
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    y.register_hook(lambda g: g.clamp(-0.5, 0.5))
    y.retain_grad()
    return {**gradients(square(y), net=net, x=x), "y": y.grad}


@case()
def a_buffer_that_a_backward_hook_updates(run: Way) -> Values:
    """A module in training keeps a running norm of its gradients in a buffer."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    net.register_buffer("norm", torch.zeros(()))

    def noted(module, grad_input, grad_output):
        module.norm.mul_(0.9).add_(0.1 * grad_output[0].norm())

    net.register_full_backward_hook(noted)
    values = gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net, x=x)
    return {**values, "norm": net.norm.clone()}


@case("opacus#613")
def gradients_per_sample_by_hooks(run: Way) -> Values:
    """Forward hooks stack a layer's inputs, backward hooks make per-sample gradients."""
    net, x, stack = nn.Linear(4, 4), leaf(3, 4), []
    total = torch.zeros(3, 4, 4)

    def entered(module, args):
        if torch.is_grad_enabled():
            stack.append(args[0].detach())

    def left(module, grad_input, grad_output):
        total.add_(torch.einsum("no,ni->noi", grad_output[0], stack.pop()))

    net.register_forward_pre_hook(entered)
    net.register_full_backward_hook(left)
    values = gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net, x=x)
    return {**values, "per sample": total}


@case()
def a_hooked_weight_in_a_custom_function(run: Way) -> Values:
    """A parameter with a hook is used by a `torch.autograd.Function`."""
    w, x = leaf(4, 4), leaf(3, 4)
    w.register_hook(lambda g: g.clamp(-0.5, 0.5))

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g @ w.t(), x.t() @ g

    square(run(lambda x, i: torch.tanh(Product.apply(x, w)), M, x)).backward()
    return grads_of(w=w, x=x)


@case(expected="raises", why=OUTSIDE)
def features_that_a_loss_uses(run: Way) -> Values:
    """A forward hook collects features of every step, and a loss uses them."""
    net, x, features = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), leaf(3, 4), []
    net[1].register_forward_hook(lambda module, args, y: features.append(y))
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    loss = square(y) + torch.stack(features[:M]).square().mean()
    return gradients(loss, net=net, x=x)


@case(expected="raises", why=OUTSIDE)
def an_auxiliary_loss_in_an_attribute(run: Way) -> Values:
    """A network adds to `self.auxiliary` in every step, as mixtures of experts do."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.auxiliary = nn.Linear(4, 4), torch.zeros(())

        def forward(self, x, i):
            h = self.layer(x)
            self.auxiliary = self.auxiliary + h.square().mean()
            return torch.tanh(h)

    net, x = Net(), leaf(3, 4)
    y = run(net, M, x)
    return gradients(square(y) + net.auxiliary, net=net, x=x)


@case()
def a_hook_on_the_state_that_a_step_is_given(run: Way) -> Values:
    """Every step but the first halves the gradient of its input with a hook."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        if i and x.requires_grad:
            x.register_hook(lambda g: g / 2)
        return torch.tanh(net(x))

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def a_hook_on_the_state_that_a_step_returns(run: Way) -> Values:
    """A step bounds the gradient of its result with a hook."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        y = torch.tanh(net(x))
        if y.requires_grad:
            y.register_hook(lambda g: g / (1 + g.norm()))
        return y

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def a_hook_that_a_transform_bypasses(run: Way) -> Values:
    """A weight with a hook is used inside `torch.func.vmap`."""
    w, x = leaf(4, 4), leaf(3, 4)
    w.register_hook(lambda g: g.clamp(-0.5, 0.5))
    y = run(lambda x, i: torch.func.vmap(lambda row: torch.tanh(w @ row))(x), M, x)
    return gradients(square(y), w=w, x=x)


@case()
def a_captured_tensor_with_a_hook(run: Way) -> Values:
    """A tensor computed before the sampler has a hook that halves its gradient."""
    embed, x = nn.Linear(3, 4), leaf(3, 4)
    e = torch.tanh(embed(torch.randn(3, 3)))
    e.register_hook(lambda g: g / 2)
    y = run(lambda x, i: torch.tanh(x @ torch.ones(4, 4) / 4 + e), M, x)
    return gradients(square(y), embed=embed, x=x)


@case(expected="raises", why=OUTSIDE)
def an_auxiliary_loss_whose_graph_saves_nothing(run: Way) -> Values:
    """Sums of each step's results are added outside; their derivative needs no saved tensor."""
    shift, x, seen = leaf(4), leaf(3, 4), []

    def step(x, i):
        h = x + shift
        seen.append(h.sum())
        return torch.tanh(h)

    y = run(step, M, x)
    return gradients(square(y) + sum(seen[:M]), shift=shift, x=x)


@case()
def hooks_of_nodes_of_the_graph(run: Way) -> Values:
    """`y.grad_fn.register_prehook` on a node that a step makes."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        y = torch.tanh(net(x))
        if y.grad_fn is not None:
            y.grad_fn.register_prehook(lambda g: tuple(h / (1 + h.norm()) for h in g))
        return y

    return gradients(square(run(step, M, x)), net=net, x=x)
