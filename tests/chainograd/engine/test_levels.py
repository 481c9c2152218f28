"""Levels of steps with truncation, trajectories, slices, further derivatives and full memory."""

import pytest
import torch
import torch.nn.functional as F

from chainograd import ChainError, CheckpointedChain, ReplayError
from tests.chainograd.engine.cut_steps import (
    DIM,
    Block,
    M,
    Net,
    chain_of,
    either_store,
    every_cut,
    state,
    store_in,
)
from tests.problems import states_of


class Dropping(Net):
    """Drops out between its blocks, and takes a condition."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(1, DIM))

    def forward(self, x, i, c=None):
        before = x
        for block in self.blocks:
            x = F.dropout(block(x + self.w), 0.1)
        return torch.tanh(x + 0.1 * before) * (1 if c is None else torch.sigmoid(c))


class Problem:
    """A network, its inputs, and what is asked of it."""

    def __init__(self):
        self.net, self.x = Dropping(), state()
        self.c = torch.randn(1, DIM, requires_grad=True)
        self.inputs = (self.x, self.c, *self.net.parameters())

    def loop(self, steps=range(M)):
        states = [self.x]
        for i in range(M):
            x = self.net(states[-1], i, self.c)
            states.append(x if i in steps else x.detach())
        return states

    def gradients(self, states, loss):
        torch.manual_seed(3)
        return torch.autograd.grad(loss(states()), self.inputs, allow_unused=True)

    def assert_same(self, chain, loss, steps=range(M)):
        expected = self.gradients(lambda: self.loop(steps), loss)

        got = self.gradients(lambda: chain.trajectory(self.x, c=self.c), loss)

        assert all(e is None or torch.equal(g, e) for g, e in zip(got, expected, strict=True))


@pytest.fixture
def problem():
    """Return a problem."""
    return Problem()


@every_cut
@either_store
def test_losses_on_several_states_pass_cut_steps(problem, plan, place, tmp_path):
    chain = chain_of(problem.net, plan, store=store_in(place, tmp_path))

    problem.assert_same(chain, lambda x: x[1].square().sum() + x[2].sum() + x[3].sin().sum())


@every_cut
@either_store
@pytest.mark.parametrize("steps", [{1, 2}, {2}, {0, 2}], ids=str)
def test_truncated_gradients_pass_cut_steps(problem, steps, plan, place, tmp_path):
    chain = chain_of(problem.net, plan, grad_steps=steps, store=store_in(place, tmp_path))

    problem.assert_same(chain, lambda x: x[-1].square().sum(), steps)


@every_cut
@either_store
def test_a_cut_step_is_passed_as_often_as_asked(problem, plan, place, tmp_path):
    chain = chain_of(problem.net, plan, store=store_in(place, tmp_path))

    def passed(run):
        torch.manual_seed(3)
        y = run()[-1]
        first = torch.autograd.grad(y.square().sum(), problem.inputs, retain_graph=True)
        batch = torch.stack([torch.ones_like(y), y.detach()])
        both = torch.autograd.grad(
            y, problem.inputs, batch, retain_graph=True, is_grads_batched=True
        )
        return [*first, *both, *torch.autograd.grad(y.sin().sum(), problem.inputs)]

    expected = passed(problem.loop)
    got = passed(lambda: [chain(problem.x, c=problem.c)])

    assert all(map(torch.equal, got, expected))


@every_cut
def test_second_derivatives_pass_cut_steps(problem, plan):
    problem.net.double()
    problem.x = problem.x[:4].detach().double().requires_grad_()
    problem.c = problem.c.detach().double().requires_grad_()
    problem.inputs = (problem.x, problem.c, *problem.net.parameters())

    def second(run):
        torch.manual_seed(3)
        loss = run()[-1].square().sum()
        first = torch.autograd.grad(loss, problem.inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), problem.inputs)

    expected = second(problem.loop)
    got = second(lambda: [chain_of(problem.net, plan)(problem.x, c=problem.c)])

    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)  # sums in another order


@every_cut
def test_transforms_of_torch_func_run_the_plain_loop(plan):
    net, x = Net(), state().detach()[:4]

    def loss(run):
        return torch.func.grad(lambda x: run(x).square().sum())(x)

    expected = loss(lambda x: states_of(net, M, x)[-1])
    assert torch.equal(loss(chain_of(net, plan)), expected)


@pytest.mark.parametrize("plan", ["blocks", "blocks+attention", "nodes+attention"])
@either_store
def test_slices_are_cut(problem, plan, place, tmp_path):
    chains = [
        chain_of(problem.net, each, micro_batch=200, store=store_in(place, tmp_path))
        for each in ("nodes", plan)
    ]

    expected, got = (
        problem.gradients(lambda c=c: [c(problem.x, c=problem.c)], lambda x: x[-1].square().sum())
        for c in chains
    )

    assert all(map(torch.equal, got, expected))


class Full(Block):
    """Runs out of memory once."""

    left = 0

    def forward(self, h):
        Full.left -= 1
        if Full.left == 0:
            raise torch.OutOfMemoryError("no room")
        return super().forward(h)


@pytest.mark.parametrize("plan", ["skeleton", "skeleton+attention"])
@pytest.mark.parametrize("at", range(3, 11))  # later no graph is left to drop
@pytest.mark.filterwarnings("ignore:Memory ran out")
def test_cut_graphs_are_dropped_when_memory_runs_out(at, plan):
    net, x = Net(Full), state()
    inputs = (x, *net.parameters())
    Full.left = 0
    expected = torch.autograd.grad(states_of(net, M, x)[-1].square().sum(), inputs)

    Full.left = at
    got = torch.autograd.grad(chain_of(net, plan)(x).square().sum(), inputs)

    assert all(map(torch.equal, got, expected))
    assert Full.left < 0


@every_cut
def test_a_rerun_block_that_returns_something_else_is_named(plan):
    class Counting(Block):
        calls = 0

        def forward(self, h):
            Counting.calls += 1
            return super().forward(h) * (1 + 0.01 * Counting.calls)

    y = chain_of(Net(Counting), plan)(state())

    with pytest.raises(ReplayError, match=r"Step \d ran its block `blocks\.1` again"):
        y.sum().backward()


def test_the_gradient_of_what_a_block_adds_at_will_is_refused_whatever_is_compared():
    class Growing(Block):
        calls = 0

        def forward(self, h):
            Growing.calls += 1
            return super().forward(h) + (0 * self.b if Growing.calls > 6 else 0)

    chain = CheckpointedChain(net := Net(Growing), M, plan="skeleton", blocks=[*net.blocks],
                              verify="off")  # fmt: skip

    with pytest.raises(ChainError, match="again with another graph"):
        chain(state()).sum().backward()
