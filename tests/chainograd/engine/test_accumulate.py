"""Gradients of what all steps share: the plain loop's to the bit, each in memory once."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from chainograd import CheckpointedChain, meter
from chainograd.errors import CapturedTensorError
from tests.problems import plain

M = 5
SIDE = 64
MiB = 2**20


class OnceOrTwice(torch.nn.Module):
    """A step that uses its weight once, or twice in every other step, and may give it away."""

    def __init__(self, pattern):
        super().__init__()
        torch.manual_seed(0)
        self.pattern = pattern
        self.weight = torch.nn.Parameter(torch.randn(SIDE, SIDE) / 8)
        self.other = torch.nn.Parameter(torch.randn(SIDE, SIDE) / 8)

    def forward(self, x, i):
        match self.pattern:
            case "once":
                return torch.tanh(x @ self.weight)
            case "twice":
                return torch.tanh(x @ self.weight) @ self.weight
            case "mixed":
                y = torch.tanh(x @ self.weight)
                return y @ self.weight if i % 2 else y
            case "one gradient for two":
                return torch.tanh(x @ (self.weight + self.other))
            case "itself":
                return torch.tanh(x @ self.other) if i != 2 else self.weight


class Widest(torch.nn.Module):
    """A step with many weights and a small state."""

    def __init__(self, layers=16, width=256):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))

    def forward(self, x, i):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Fails(torch.autograd.Function):
    """Runs out of memory on its way back, as often as the list says."""

    @staticmethod
    def forward(ctx, x, times):
        ctx.times = times
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if ctx.times and ctx.times.pop():
            raise torch.OutOfMemoryError("injected")
        return g, None


def gradients(y, step):
    return torch.autograd.grad(y.sin().sum(), [*step.parameters()], allow_unused=True)


@pytest.mark.parametrize("plan", ["nodes", "graph"])
@pytest.mark.parametrize("pattern", ["once", "twice", "mixed", "one gradient for two", "itself"])
def test_large_gradients_are_those_of_the_plain_loop_to_the_bit(pattern, plan):
    step = OnceOrTwice(pattern)
    x = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(1))

    expected = gradients(plain(step, M, x), step)
    got = gradients(CheckpointedChain(step, M, plan=plan)(x), step)

    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def test_trained_weights_take_their_gradients_once():
    step = Widest()
    weights = sum(p.nbytes for p in step.parameters())
    x = torch.randn(4, 256)
    chain = CheckpointedChain(step, M)

    with meter() as reading:
        gradients(chain(x), step)

    assert weights > 4 * MiB
    assert reading.peak_bytes < 1.2 * weights


class Additions(TorchDispatchMode):
    """Lists additions, those in place and the others."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor):
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        self.seen = []
        return super().__enter__()


@pytest.mark.parametrize("side", [2, SIDE])
def test_all_but_the_first_two_gradients_are_added_in_place(side):
    weight = torch.randn(side, side, requires_grad=True)
    y = CheckpointedChain(lambda x, i: torch.tanh(x @ weight), M)(torch.randn(3, side)).sum()

    with Additions() as additions:
        torch.autograd.grad(y, weight)

    assert additions.seen == ["add"] + ["add_"] * (M - 2)


class Late(Widest):
    """A step with large activations before its weights: their gradients are there beside them."""

    def forward(self, x, i):
        wide = x.repeat(1, 512)
        for _ in range(4):
            wide = torch.tanh(wide)
        return super().forward(wide.view(len(x), 512, -1).mean(1), i)


@pytest.mark.parametrize("make", [Widest, Late])
@pytest.mark.parametrize("num_steps", [1, 2, M])
@pytest.mark.parametrize("plan", ["nodes", "graph"])
def test_the_peak_of_a_chain_with_trained_weights_is_predicted(plan, num_steps, make):
    step = make()
    x = torch.randn(4, 256)
    chain = CheckpointedChain(step, num_steps, plan=plan)
    predicted = chain.plan.with_costs(chain.measure(x)).peak_bytes

    with meter() as reading:
        gradients(chain(x), step)

    assert reading.peak_bytes == pytest.approx(predicted, rel=0.03)


def test_the_gradient_of_a_step_that_runs_out_of_memory_on_its_way_back_is_added_once():
    step, times = OnceOrTwice("once"), []

    def failing(x, i):
        # Back to front: the second weight's gradient is added before the failure.
        return torch.tanh(Fails.apply(step(x, i), times if i == 2 else []) @ step.other)

    x = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    chain = CheckpointedChain(failing, M, plan="graph")
    expected = gradients(chain(x), step)
    times.append(True)

    with pytest.warns(UserWarning, match="Memory ran out"):
        got = gradients(chain(x), step)

    assert not times
    assert all(map(torch.equal, got, expected))


class Hides:
    """Keeps a tensor where no search finds it."""

    def __init__(self, tensor):
        self._held = itertools.repeat(tensor)

    def __call__(self, x, i):
        return next(self._held) if i == 1 else x * 2


def test_a_step_that_returns_a_hidden_tensor_itself_is_refused():
    x, hidden = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)

    with pytest.raises(CapturedTensorError, match="Step 1 uses a tensor of shape"):
        CheckpointedChain(Hides(hidden), 3)(x).sum().backward()


def test_a_hidden_tensor_that_a_step_returns_gets_its_gradient_if_named():
    x, hidden = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)

    CheckpointedChain(Hides(hidden), 3, params=[hidden])(x).sum().backward()

    assert torch.equal(hidden.grad, torch.full((3,), 2.0))


@pytest.mark.parametrize("uses", [1, 2])
def test_sparse_gradients_add_up(uses):
    def step(x, i):
        for _ in range(uses):
            x = torch.tanh(x + table(torch.tensor(i % 5)))
        return x

    grads = []
    for run in (lambda x: CheckpointedChain(step, 4)(x), lambda x: plain(step, 4, x)):
        torch.manual_seed(0)
        table = nn.Embedding(5, 3, sparse=True)
        run(torch.ones(3)).sum().backward()
        assert table.weight.grad.is_sparse
        grads.append(table.weight.grad.to_dense())

    assert torch.equal(*grads)
