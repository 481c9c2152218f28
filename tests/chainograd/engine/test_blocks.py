"""Calls of blocks of every kind: gradients equal to the plain loop's, or a reason."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from chainograd import ChainError, ChangedTensorError, CheckpointedChain, ReplayError
from tests.chainograd.engine.cut_steps import (
    DIM,
    Block,
    M,
    Net,
    assert_equal_to_the_loop,
    chain_of,
    either_store,
    every_cut,
    gradients,
    state,
    store_in,
)
from tests.problems import plain


class Timed(Block):
    """Takes the embedding of a time, and things that are no tensors."""

    def forward(self, h, e, *, options=None, scale=1.0):
        h = super().forward(h + e) * torch.tanh(e) * scale
        return h if options is None else h + options["more"][0].sin()


class OneEmbedding(Net):
    """Passes all blocks one tensor that needs a gradient, and uses it in between."""

    def __init__(self):
        super().__init__(Timed)
        self.time = nn.Parameter(torch.randn(1, DIM))

    def forward(self, x, i):
        e = torch.sin(self.time * (i + 1))
        for block in self.blocks:
            x = block(x, e, options={"more": [x, None, "text"]}, scale=0.9) + 0.1 * e * e
        return torch.tanh(x)


class Skips(Net):
    """Keeps what enters its blocks for later ones, which are the same ones."""

    def forward(self, x, i):
        skips = []
        for block in self.blocks:
            skips.append(x)
            x = block(x)
        for block in self.blocks:
            x = block(x + 0.3 * skips.pop())
        return torch.tanh(x)


class Residuals(Net):
    """Adds to the results of blocks in place."""

    def __init__(self):
        super().__init__()
        self.residual = nn.Parameter(torch.randn(1, DIM))

    def forward(self, x, i):
        for block in self.blocks:
            x = block(x)
            x += 0.1 * self.residual
        return torch.tanh(x)


class Twice(Block):
    """Uses two arguments by turns, so that the order shows in which gradients are added up."""

    def forward(self, h, c):
        return torch.tanh(h @ self.w) * c + torch.sin(c) @ self.w + h * c * self.b + torch.cos(h)


class OneTensorTwice(Net):
    """Passes a tensor to a block twice."""

    def __init__(self):
        super().__init__(Twice)

    def forward(self, x, i):
        for block in self.blocks:
            x = torch.tanh(block(x, c=x))
        return x


class Many(Block):
    """Returns a tensor twice, an argument, tensors without a gradient, and no tensors."""

    def forward(self, h, c):
        y = super().forward(h)
        unused = (h @ self.w).sum()
        return {"y": y, "more": [y, c, h.detach(), self.w[:2]]}, y.argmax(-1), unused, None, "text"


class ManyResults(Net):
    """Uses most of what its blocks return."""

    def __init__(self):
        super().__init__(Many)

    def forward(self, x, i):
        c = 2 * x
        for block in self.blocks:
            found, places, *_ = block(x, c)
            again, c, outside, rows = found["more"]
            x = found["y"] * again + c + outside + rows.sum(0) + F.one_hot(places, DIM)
            x = torch.tanh(x)
        return x


class Complex(Net):
    """Saves the real and the imaginary part of what a block returns: views of one memory."""

    def __init__(self):
        super().__init__(Imaginary)

    def forward(self, x, i):
        for block in self.blocks:
            z = block(x)
            x = torch.tanh(z.real * z.imag) + (z * z.conj()).real.sin()
        return x


class Imaginary(Block):
    """Returns complex numbers."""

    def forward(self, h):
        return torch.complex(super().forward(h), h)


class SharedWeights(Net):
    """Shares a weight between its blocks, and uses it in between."""

    def __init__(self):
        super().__init__()
        self.blocks[1].w = self.blocks[0].w

    def forward(self, x, i):
        for block in self.blocks:
            x = torch.tanh(block(x) @ block.w)
        return self.blocks[0](x)


class Random(Block):
    """Drops out and draws noise."""

    def forward(self, h):
        return F.dropout(super().forward(h), 0.3) * (1 + 0.1 * torch.randn(h.shape))


class RandomBetween(Net):
    """Draws inside its blocks and between them."""

    def __init__(self):
        super().__init__(Random)

    def forward(self, x, i):
        for block in self.blocks:
            x = block(x) * (1 + 0.1 * torch.rand_like(x))
        return torch.tanh(x)


class WithoutGraph(Net):
    """Calls a block under `no_grad`, too."""

    def forward(self, x, i):
        with torch.no_grad():
            mask = self.blocks[0](x)
        return torch.tanh(self.blocks[0](x) * mask.sigmoid() + self.blocks[1](x))


class OtherOrder(Net):
    """Calls other blocks in other steps, in another order."""

    def forward(self, x, i):
        for block in [*self.blocks][:: 1 if i % 2 else -1][: 1 + i % 2]:
            x = block(x)
        return torch.tanh(x)


class Normed(Block):
    """Has statistics of the batch."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(DIM)

    def forward(self, h):
        return super().forward(self.norm(h))


class OwnLeaf(Block):
    """Makes a leaf of its own."""

    def forward(self, h):
        return super().forward(h + torch.zeros(1, DIM, requires_grad=True))


class Frozen(nn.Module):
    """Has frozen layers, which save less."""

    def __init__(self):
        super().__init__()
        self.norm, self.into = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)
        self.back = nn.Linear(DIM, DIM)
        self.norm.requires_grad_(False)
        self.into.requires_grad_(False)

    def forward(self, h):
        return h + self.back(F.gelu(self.into(self.norm(h))))


class Guided(Block):
    """Takes a gradient of its own."""

    def forward(self, h):
        g = torch.autograd.grad(torch.tanh(h @ self.w).sum(), h, create_graph=True)
        return super().forward(h) + 0.1 * g[0]


class HoldsAChain(Block):
    """Runs a chain that is cut, too."""

    def __init__(self):
        super().__init__()
        self.part = Block()
        self.chain = CheckpointedChain(self.step, 2, plan="skeleton", blocks=[self.part])

    def step(self, h, i):
        return torch.tanh(self.part(h) * self.b)

    def forward(self, h):
        return self.chain(h) @ self.w


class ChainOfTheSameBlocks(Net):
    """Runs a chain inside its step, which is cut into the same blocks."""

    def __init__(self):
        super().__init__()
        self.inner = CheckpointedChain(super().forward, 2, plan="skeleton", blocks=[*self.blocks])

    def forward(self, x, i):
        return self.inner(self.blocks[0](x))


class Checkpointed(Net):
    """Checkpoints its blocks by torch's own way, too."""

    def forward(self, x, i):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return torch.tanh(x)


class UnderAutocast(Net):
    """Opens autocast around its blocks."""

    def forward(self, x, i):
        x = 1.0 * x  # autocast caches the cast of a leaf
        with torch.autocast("cpu", torch.bfloat16):
            for block in self.blocks:
                x = F.linear(block(x), torch.eye(DIM))
        return torch.tanh(x.float())


class Linear(nn.Module):
    """Uses its weight once."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(DIM, DIM)

    def forward(self, h):
        return h + self.layer(h)


NETS = {
    "plain": Net,
    "one embedding": OneEmbedding,
    "skips": Skips,
    "residuals in place": Residuals,
    "one tensor twice": OneTensorTwice,
    "many results": ManyResults,
    "complex results": Complex,
    "shared weights": SharedWeights,
    "random numbers": RandomBetween,
    "without a graph": WithoutGraph,
    "other order": OtherOrder,
    "batch norm": lambda: Net(Normed),
    "a leaf of its own": lambda: Net(OwnLeaf),
    "frozen layers": lambda: Net(Frozen),
    "a gradient inside": lambda: Net(Guided),
    "a chain inside": lambda: Net(HoldsAChain),
    "in a chain": ChainOfTheSameBlocks,
    "checkpointed": Checkpointed,
    "autocast": UnderAutocast,
}


@every_cut
@either_store
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_blocks_of_any_kind_have_the_gradients_of_the_plain_loop(make, plan, place, tmp_path):
    assert_equal_to_the_loop(make(), plan, store=store_in(place, tmp_path))


@every_cut
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_blocks_of_any_precision_have_the_gradients_of_the_plain_loop(dtype, plan):
    x = torch.randn(2, DIM, dtype=dtype, requires_grad=True)

    assert_equal_to_the_loop(Skips().to(dtype), plan, x=x)


@every_cut
def test_a_block_may_draw_from_a_named_generator(plan):
    generator = torch.Generator()

    class Drawing(Block):
        def forward(self, h):
            return super().forward(h) * (1 + 0.1 * torch.randn(h.shape, generator=generator))

    net, x = Net(Drawing), state()
    chain = chain_of(net, plan, generators=[generator])
    generator.manual_seed(0)
    expected = gradients(lambda x: plain(net, M, x), x, *net.parameters())

    generator.manual_seed(0)
    got = gradients(chain, x, *net.parameters())

    assert all(map(torch.equal, got, expected))


@every_cut
def test_statistics_of_the_batch_are_counted_once(plan):
    net, x = Net(Normed), state()
    twin = Net(Normed)
    twin.load_state_dict(net.state_dict())
    plain(twin, M, x)

    chain_of(net, plan)(x).sum().backward()

    assert all(map(torch.equal, net.state_dict().values(), twin.state_dict().values()))


@every_cut
def test_hooks_of_blocks_are_called(plan):
    net = Net()
    for block in net.blocks:
        block.register_forward_pre_hook(lambda module, given: (given[0].sin(),))
        block.register_forward_hook(lambda module, given, out: 1.1 * out)
        block.register_full_backward_hook(lambda module, before, after: (0.7 * before[0],))

    assert_equal_to_the_loop(net, plan)


@every_cut
def test_compiled_blocks_are_cut(plan):
    net = Net(Linear)
    net.blocks[0].compile(backend="aot_eager")
    net.blocks[1] = torch.compile(net.blocks[1], backend="aot_eager")

    assert_equal_to_the_loop(net, plan)


class Guiding(Net):
    """Runs its blocks a second time for a gradient of its own."""

    def forward(self, x, i):
        leaf = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(super().forward(leaf, i).square().sum(), leaf)
        return super().forward(x, i) - 0.1 * g


class Steering(Net):
    """Takes a gradient through blocks whose graph it needs afterwards, too."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x, i):
        y = super().forward(x, i)
        (g,) = torch.autograd.grad(y.square().sum(), x, **self.options)
        return torch.tanh(y - 0.1 * g)


@every_cut
def test_a_step_may_take_a_gradient_through_its_blocks_and_leave_out_their_graph(plan):
    assert_equal_to_the_loop(Guiding(), plan)


@every_cut
@pytest.mark.parametrize("options", [{"retain_graph": True}, {"create_graph": True}], ids=str)
def test_a_step_may_take_a_gradient_through_its_blocks(options, plan):
    assert_equal_to_the_loop(Steering(**options), plan)


@pytest.mark.parametrize("plan", ["blocks", "blocks+attention"])
def test_slices_of_a_step_may_take_gradients_through_its_blocks(plan):
    net, x = Steering(create_graph=True), state()
    expected = gradients(chain_of(net, "nodes", micro_batch=200), x, *net.parameters())

    got = gradients(chain_of(net, plan, micro_batch=200), x, *net.parameters())

    assert all(map(torch.equal, got, expected))


def test_steps_of_several_threads_are_cut_at_the_same_time_and_leave_no_trace():
    net, x = Net(), state()
    expected = gradients(lambda x: plain(net, M, x), x, *net.parameters())[:-1]
    same = []

    def work():
        for plan in ("skeleton", "blocks"):
            loss = chain_of(net, plan)(x)
            found = torch.autograd.grad(loss.square().sum(), (x, *net.parameters()))
            same.append(all(map(torch.equal, (loss, *found), expected)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert same == [True] * 6
    assert not any("forward" in vars(block) for block in net.blocks)


@every_cut
def test_the_blocks_are_as_before_after_an_error(plan):
    class Failing(Block):
        def forward(self, h):
            raise KeyError("no such thing")

    net = Net(Failing)
    own = vars(net.blocks[1])["forward"] = lambda h: h.sin()

    with pytest.raises(KeyError):
        chain_of(net, plan)(state())

    assert "forward" not in vars(net.blocks[0])
    assert vars(net.blocks[1])["forward"] is own


class ChangesItsArgument(Block):
    def forward(self, h):
        return super().forward(h.add_(1))


class FillsAList(Block):
    def forward(self, h, found=None):
        (found := [] if found is None else found).append(h)
        return super().forward(h)


class HooksItsArgument(Block):
    def forward(self, h):
        h.register_hook(lambda g: 0.5 * g)
        return super().forward(h)


class LeavesGradientsOff(Block):
    def forward(self, h):
        y = super().forward(h)
        torch.set_grad_enabled(False)
        return y


class Keeps(Block):
    def forward(self, h):
        self.last = torch.tanh(h)
        return super().forward(h)


class KeepsItsArgument(Block):
    def forward(self, h):
        self.last = h
        return super().forward(h)


class HidesIt(Block):
    def forward(self, h):
        return Holder(super().forward(h))


class Holder:
    def __init__(self, y):
        self.y = y


class ReturnsAView(Block):
    def forward(self, h):
        return h[:, :4]


class ReturnsViewsOfOneAnother(Block):
    def forward(self, h):
        y = super().forward(h)
        return y[:, :4], y


def each(change):
    class Changed(Net):
        def forward(self, x, i):
            x = 1.0 * x
            for block in self.blocks:
                x = torch.tanh(change(block, x))
            return x

    return Changed


def with_list(block, x):
    found = []
    return block(x, found) + sum(found)


def doubled_view(block, x):
    block(x).mul_(2)
    return x


def doubled_after_view(block, x):
    view = block(x)
    x.mul_(2)
    return torch.cat([view, view], 1)


def doubled_result(block, x):
    view, y = block(x)
    y.mul_(2)
    return torch.cat([view, view], 1)


def with_foreign(block, x):
    block.foreign = torch.tanh(x)
    return block(x)


class UsesForeign(Block):
    def forward(self, h):
        return super().forward(h) * self.foreign


def with_last(block, x):
    return block(x) + block.last


REFUSED = {
    "argument": (each(lambda b, x: b(x)), ChangesItsArgument, "changes one of its arguments in"),
    "list": (each(with_list), FillsAList, "changes a list or dict among its arguments"),
    "hook": (each(lambda b, x: b(x)), HooksItsArgument, "registers a hook on one of its arguments"),
    "mode": (each(lambda b, x: b(x)), LeavesGradientsOff, "switches gradients off and leaves"),
    "kept": (each(with_last), Keeps, r"uses a tensor that the block `blocks\.\d` .* computed and"),
    "kept argument": (each(with_last), KeepsItsArgument, "computed and kept, outside of what"),
    "foreign": (each(with_foreign), UsesForeign, "`blocks.0` of step 0 uses a tensor that somethi"),
    "hidden": (each(lambda b, x: b(x).y), HidesIt, "an object of the class Holder with tensors"),
    "view": (each(doubled_view), ReturnsAView, "returns a view of one of its arguments"),
    "viewed": (each(doubled_after_view), ReturnsAView, "returns a view of one of its arguments"),
    "views": (each(doubled_result), ReturnsViewsOfOneAnother, "or of something else that it retu"),
}  # fmt: skip


@every_cut
@either_store
@pytest.mark.parametrize(("make", "block", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_cut_is_refused(make, block, reason, plan, place, tmp_path):
    chain = chain_of(make(block), plan, store=store_in(place, tmp_path))

    with pytest.raises(ChainError, match=reason):
        chain(state()).sum().backward()


@pytest.mark.parametrize("plan", ["skeleton", "blocks"])
def test_a_kept_tensor_that_the_next_step_uses_is_refused(plan):
    class Late(Net):
        def forward(self, x, i):
            x = x + self.blocks[1].last if i else x
            return super().forward(x, i)

    with pytest.raises(ChainError, match=r"that the block `blocks\.1` of step 0 computed and kept"):
        chain_of(Late(Keeps), plan)(state()).sum().backward()


@every_cut
def test_a_kept_tensor_that_is_not_used_again_does_no_harm(plan):
    assert_equal_to_the_loop(Net(Keeps), plan)


@every_cut
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_a_weight_that_changed_before_the_backward_pass_is_refused(trained, plan):
    net = Net().requires_grad_(trained)
    y = chain_of(net, plan)(state())
    with torch.no_grad():
        net.blocks[0].w.add_(1)

    with pytest.raises((ChangedTensorError, ReplayError)):
        y.sum().backward()


class Attends(nn.Module):
    """Attention whose query alone depends on a frozen weight."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(DIM, DIM).requires_grad_(False)
        self.mask = torch.zeros(4, 4)

    def forward(self, h):
        q, k = self.query(h).view(-1, 2, 4, 4), h.view(-1, 2, 4, 4)
        return h + F.scaled_dot_product_attention(q, k, k, self.mask).reshape(h.shape)


@pytest.mark.parametrize("plan", ["nodes+attention", "blocks+attention", "skeleton+attention"])
@pytest.mark.parametrize(
    "change",
    [lambda block: block.query.weight.add_(1), lambda block: block.mask.copy_(torch.randn(4, 4))],
    ids=["weight", "mask"],
)
def test_what_only_attention_sees_must_not_change_before_the_backward_pass(change, plan):
    net = Net(Attends)
    y = chain_of(net, plan)(state())
    with torch.no_grad():
        change(net.blocks[0])

    with pytest.raises((ChangedTensorError, ReplayError)):
        y.sum().backward()
