"""What levels cost: predicted from one measured step, and metered in whole runs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from chainograd import Budget, ChainError, CheckpointedChain, Level, meter
from chainograd.engine.level_costs import with_level_seconds
from chainograd.plans.costs import BlockCost, GraphCost, StepCost
from chainograd.plans.planners import resolve

M, WIDTH, TOKENS = 6, 64, 96
PLANS = (
    "graph", "nodes", "nodes+attention", "blocks", "blocks+attention", "skeleton",
    "skeleton+attention",
)  # fmt: skip


class Block(nn.Module):
    """A transformer's block."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, h):
        """Return the hidden states after the block."""
        heads = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)
        h = h + self.out(attended)
        return h + self.down(F.gelu(self.up(h)))


class Step(nn.Module):
    """A step of a transformer of four blocks, on a small state."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x, i):
        """Return the next state."""
        h = self.enter(x)
        for block in self.blocks:
            h = block(h)
        return x + self.leave(h) / M


def state():
    return torch.randn(2, TOKENS, 4, requires_grad=True)


def step(trained=False):
    return Step().requires_grad_(trained)


def peak_of(chain):
    """Return the metered peak of a run, its state included."""
    with meter() as reading:
        y = chain(state())
        y.backward(torch.ones_like(y))
    return reading.peak_bytes


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("plan", PLANS)
def test_the_predicted_peak_is_within_a_percent_of_the_metered_one(plan, trained):
    net = step(trained)
    costs = CheckpointedChain(net, M, frozen="off").measure(state())

    metered = peak_of(CheckpointedChain(net, M, plan=plan, frozen="off"))

    assert resolve(plan, M).with_costs(costs).peak_bytes == pytest.approx(metered, rel=0.01)


@pytest.mark.parametrize("plan", ["skeleton", "skeleton+attention"])
def test_what_a_skeleton_holds_in_a_folder_is_not_on_the_device(plan, tmp_path):
    net = step()
    here = peak_of(CheckpointedChain(net, M, plan=plan, frozen="off"))
    chain = CheckpointedChain(net, M, plan=plan, store=tmp_path, frozen="off")
    costs = chain.measure(state())
    planned = chain.plan.with_costs(costs)

    away = peak_of(chain)

    block = max(block.graph_bytes for block in costs[0].blocks)
    inputs = 4 * 2 * TOKENS * WIDTH * 4
    assert planned.stored_bytes >= M * inputs
    assert here - away >= (M - 2) * inputs
    assert away <= 3 * block


def test_fake_tensors_weigh_levels_as_real_ones_do():
    def sizes(costs):
        return [
            (g.level, g.kept, g.graph_bytes, g.record_bytes, g.stored_bytes)
            for g in costs[0].graphs
        ]

    real = sizes(CheckpointedChain(step(), M, frozen="off").measure(state()))

    with FakeTensorMode():
        fake = sizes(CheckpointedChain(step(), M, frozen="off").measure(state()))

    assert len(real) == 5
    for (*what, a, b, c), (*same, d, e, f) in zip(real, fake, strict=True):
        assert what == same
        assert (d, e, f) == pytest.approx((a, b, c), abs=100 * M)  # digests


def test_operations_are_counted_on_fake_tensors():
    with FakeTensorMode():
        (cost, *_) = CheckpointedChain(step(), 1, store="./none", frozen="off").measure(state())
    tokens, attention = 2 * TOKENS, 2 * 2 * 2 * TOKENS * TOKENS * WIDTH
    blocks = 4 * (2 * tokens * WIDTH * WIDTH * 12 + attention)
    forward = blocks + 2 * 2 * tokens * 4 * WIDTH
    plain, cut = cost.graph(Level.WHOLE, kept=True), cost.graph(Level.BLOCKS, kept=True)
    attended = cost.graph(Level.BLOCKS | Level.ATTENTION, kept=True)

    assert cost.forward_flops == forward
    assert cut.backward_flops - plain.backward_flops == blocks
    assert cut.backward_flops - attended.backward_flops == 4 * attention
    assert cost.forward_seconds == cost.backward_seconds == 1.0


def test_a_budget_below_a_steps_graph_cuts_it_to_the_bit():
    net, x = step(), state()
    y = x
    for i in range(M):
        y = net(y, i)
    (expected,) = torch.autograd.grad(y.square().sum(), x)
    costs = CheckpointedChain(net, M).measure(x)
    budget = costs[0].graph_bytes
    chain = CheckpointedChain(net, M, plan=Budget(budget))

    (got,) = torch.autograd.grad(chain(x).square().sum(), x)

    assert torch.equal(got, expected)
    assert {name.partition("+")[0] for name in chain.plan.levels} <= {"blocks", "skeleton"}
    assert chain.plan.peak_bytes <= budget
    assert "4 Block" in str(chain)
    assert [row.level for row in chain.report().steps] == list(chain.plan.levels)
    assert len(chain.report().blocks) == 4


def test_blocks_that_nobody_named_and_that_cannot_be_cut_are_left_whole():
    class Appends(Block):
        def forward(self, h):
            h += 1
            return h

    class Grows(Step):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Appends() for _ in range(4))

        def forward(self, x, i):
            return super().forward(x, i)

    net = Grows().requires_grad_(False)
    chain = CheckpointedChain(net, M, plan="1GiB")

    chain(state()).sum().backward()

    assert chain.plan.levels == ("graph",) * M
    with pytest.raises(ChainError, match="changes one of its arguments in place"):
        CheckpointedChain(net, M, plan="1GiB", blocks=list(net.blocks))(state())


def test_a_budget_for_the_host_needs_a_store_there():
    with pytest.raises(ValueError, match="`store` is 'device'"):
        CheckpointedChain(step(), M, plan=Budget("1GiB", host="1GiB"))


def test_a_plan_that_cuts_needs_blocks():
    with pytest.raises(ChainError, match="no blocks were found"):
        CheckpointedChain(lambda x, i: x.sin(), M, plan="skeleton")(state())


def test_seconds_of_levels_are_shares_of_the_whole():
    blocks = (BlockCost("a", 0, 0, 0, 4.0, 1.0), BlockCost("b", 0, 0, 0, 4.0, 1.0))
    levels = (Level.BLOCKS, Level.BLOCKS | Level.ATTENTION)
    graphs = tuple(GraphCost(level, False, 0, 0, 0, 99.0) for level in levels)
    cost = StepCost(0, 0, 0, 0, 0, 0, 0, 2.0, 3.0, graphs=graphs, blocks=blocks)

    found = with_level_seconds(cost)

    assert [graph.backward_seconds for graph in found.graphs] == [5.0, 4.5]


def test_fake_tensors_in_a_store_weigh_as_real_ones_do(tmp_path):
    def kept(costs):
        return [
            (g.graph_bytes, g.backprop_bytes, g.stored_bytes) for g in costs[0].graphs if g.kept
        ]

    real = kept(CheckpointedChain(step(), 1, store=tmp_path, frozen="off").measure(state()))

    with FakeTensorMode():
        fake = kept(CheckpointedChain(step(), 1, store=tmp_path, frozen="off").measure(state()))

    one_tensor = 2 * TOKENS * WIDTH * 4  # which the thread of a real folder may still hold
    for (held, most, stored), (fake_held, fake_most, fake_stored) in zip(real, fake, strict=True):
        assert stored == fake_stored > 0
        assert abs(held - fake_held) <= 1000  # digests
        assert abs(most - fake_most) <= 2 * one_tensor + 1000
