"""Hooks of tensors outside a chain: called once, with the whole gradient, or not at all."""

import torch

from chainograd import CheckpointedChain
from tests.problems import M, every_plan, leaf, plain, ramp


def test_hooks_of_a_parameter_fire_once_with_the_whole_gradient():
    w = torch.randn(4, requires_grad=True)
    calls = []
    w.register_hook(lambda g: calls.append(g.clone()) or 2 * g)
    x = torch.randn(4)
    plain(lambda x, i: torch.tanh(x * w), 5, x).sum().backward()
    expected, w.grad = w.grad, None

    CheckpointedChain(lambda x, i: torch.tanh(x * w), 5)(x).sum().backward()

    assert len(calls) == 2
    assert torch.equal(calls[0], calls[1])
    assert torch.equal(w.grad, expected)


@every_plan
def test_a_hook_given_after_the_forward_pass_fires_once_with_the_whole_gradient(plan):
    w = ramp()

    def run(loop):
        w.grad, seen = None, []
        y = loop(lambda x, i: torch.sin(w * x)).sum()
        handle = w.register_hook(lambda g: seen.append(g.clone()) or 2 * g)
        y.backward()
        handle.remove()
        return seen, w.grad

    x = torch.ones(4).double()
    expected, doubled = run(lambda step: plain(step, M, x))
    seen, grad = run(lambda step: CheckpointedChain(step, M, plan=plan)(x))
    assert len(seen) == len(expected) == 1
    assert torch.equal(seen[0], expected[0])
    assert torch.equal(grad, doubled)


@every_plan
def test_hooks_are_called_where_there_is_a_gradient(plan):
    w, v, calls = leaf(3), leaf(3), []
    for name, tensor in (("w", w), ("v", v)):
        tensor.register_hook(lambda g, name=name: calls.append(name))
        tensor.register_post_accumulate_grad_hook(lambda _, name=name: calls.append(f"{name}.grad"))
    chain = CheckpointedChain(lambda s, i: (torch.sin(w * s[0]), torch.sin(v * s[1])), M, plan=plan)

    for _ in range(2):
        calls.clear()
        a, b = chain((torch.ones(3), torch.ones(3)))
        a.register_hook(lambda g: calls.append("a"))
        b.sum().backward()
        assert calls == ["v", "v.grad"]
        assert w.grad is None


def test_hooks_stay_on_their_parameter_while_steps_run_again():
    # Another thread's backward pass may be about to call them.
    w = torch.tensor(0.7, requires_grad=True)
    fired, there = [], []
    w.register_hook(fired.append)
    hooks = w._backward_hooks

    def step(x, i):
        there.append(len(hooks))
        return torch.sin(w * x)

    CheckpointedChain(step, 3)(torch.ones(())).backward()

    assert there == [1] * 5
    assert len(fired) == 1
