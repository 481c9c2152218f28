"""What only a GPU can show: skipped without one. The rest of the suite runs on a CPU."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from chainograd import CheckpointedChain, ReplayError, binomial, keep_last, meter
from chainograd.blocks.attention import keeping, replaying
from chainograd.samplers import SeededNoise
from tests.problems import Counted, Noisy, plain, states_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

M = 7
PLANS = {
    "nodes": "nodes",
    "graph": "graph",
    "last 3": keep_last(M, 3),
    "2 slots": binomial(M, slots=2),
    "bytes": "1GiB",
}
MiB = 2**20


class Block(nn.Module):
    """A residual block of a diffusion UNet: convolutions, norms and an activation."""

    def __init__(self, channels=32):
        super().__init__()
        self.net = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, 4 * channels, 3, padding=1),
            nn.GroupNorm(8, 4 * channels), nn.SiLU(),
            nn.Conv2d(4 * channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x, i):
        """Return the next state."""
        return x + 0.1 * self.net(x)


@pytest.fixture
def repeatable():
    """Let every kernel give the same bits again."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def gradients(run, x, parameters, seed=5):
    torch.manual_seed(seed)  # of the CPU and of all GPUs
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y.square().mean(), (x, *parameters))]


@pytest.mark.parametrize("store", ["device", "host", "folder"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_noise_and_dropout_of_the_gpu_are_replayed_to_the_bit(plan, store, tmp_path):
    net = Noisy(8, torch.float64).cuda()
    x = torch.randn(3, 8, dtype=torch.float64, device="cuda", requires_grad=True)
    chain = CheckpointedChain(net, M, plan=plan, store=tmp_path if store == "folder" else store)

    expected = gradients(lambda x: plain(net, M, x), x, net.parameters())
    after = torch.cuda.get_rng_state()
    got = gradients(chain, x, net.parameters())

    assert all(map(torch.equal, got, expected))
    assert torch.equal(torch.cuda.get_rng_state(), after)  # as after one run of each step


def test_a_named_generator_of_the_gpu_is_replayed():
    generator = torch.Generator("cuda")
    w = torch.full((), 0.9, device="cuda", requires_grad=True)

    def step(x, i):
        return torch.sin(w * x) * torch.rand(x.shape, generator=generator, device="cuda")

    def gradient(run):
        generator.manual_seed(3)
        return torch.autograd.grad(run(torch.ones(4, device="cuda")).sum(), w)[0]

    chain = CheckpointedChain(step, M, generators=[generator])
    assert torch.equal(gradient(chain), gradient(lambda x: plain(step, M, x)))
    with pytest.raises(ReplayError, match="step"):  # unless it is not named
        gradient(CheckpointedChain(step, M))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_convolutional_step_under_autocast(plan, dtype, repeatable):
    torch.manual_seed(0)
    net = Block().cuda().to(memory_format=torch.channels_last)
    x = torch.randn(4, 32, 16, 16, device="cuda", requires_grad=True)
    chain = CheckpointedChain(net, M, plan=plan)

    def within_autocast(run):
        with torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=False):
            y = run(x)
        return [y.detach(), *torch.autograd.grad(y.float().square().mean(), (x, *net.parameters()))]

    expected = within_autocast(lambda x: plain(net, M, x))
    assert all(map(torch.equal, within_autocast(chain), expected))


def test_the_backward_pass_may_begin_on_another_stream():
    torch.manual_seed(0)
    net = Block().cuda().double()
    x = torch.randn(4, 32, 16, 16, device="cuda", dtype=torch.float64, requires_grad=True)
    expected = gradients(lambda x: plain(net, M, x), x, net.parameters())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        got = gradients(CheckpointedChain(net, M, store="host"), x, net.parameters())
    torch.cuda.current_stream().wait_stream(side)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-14)


def test_states_on_the_host_are_right_while_the_gpu_is_busy():
    """Copies are queued long before they happen: one that is read too soon shows here."""
    w = torch.tensor(1.001, device="cuda", dtype=torch.float64, requires_grad=True)
    slow = torch.randn(2048, 2048, device="cuda") / 64

    def step(x, i):
        busy = slow
        for _ in range(4):
            busy = busy @ slow
        return torch.sin(w * x) + 0 * busy.flatten()[0].double() + i / 10

    def gradient(run):
        return torch.autograd.grad(run(x).sum(), w)[0]

    x = torch.linspace(0, 1, 4 * MiB // 8, device="cuda", dtype=torch.float64)
    expected = gradient(lambda x: plain(step, 20, x))
    chain = CheckpointedChain(step, 20, store="host")
    for _ in range(3):  # the second run takes the first one's buffers again
        assert torch.equal(gradient(chain), expected)


def peak(run):
    run()  # libraries take their workspaces with the first run
    with meter("cuda") as reading:
        run()
    return reading.peak_bytes


def test_nodes_on_the_host_take_no_memory_of_the_gpu():
    w = torch.tensor(0.9, device="cuda", requires_grad=True)
    x, node, steps = torch.ones(MiB, device="cuda"), 4 * MiB, 64

    def run(store):
        chain = CheckpointedChain(lambda x, i: torch.sin(w * x), steps, store=store)
        return peak(lambda: chain(x).sum().backward())

    assert run("device") > steps * node
    assert run("host") < 10 * node


@pytest.mark.parametrize("share", [0.25, 0.4, 0.6])
def test_a_byte_budget_is_kept_by_the_allocator(share):
    torch.manual_seed(0)
    net, steps = Block().cuda(), 12
    x = torch.randn(32, 32, 32, 32, device="cuda", requires_grad=True)

    def run(plan):
        chain = CheckpointedChain(net, steps, plan=plan)
        net.zero_grad()
        x.grad = None
        return peak(lambda: chain(x).square().mean().backward()), chain

    most, _ = run("graph")
    budget = int(share * most)
    found, chain = run(budget)
    predicted = chain.plan.peak_bytes

    assert found <= budget + max(0.03 * budget, MiB)
    assert abs(found - predicted) <= max(0.03 * predicted, MiB)


def test_memory_of_the_gpu_that_runs_out_is_met_by_fewer_graphs():
    torch.manual_seed(0)
    net, steps = Counted(Block().cuda()), 12
    x = torch.randn(64, 32, 32, 32, device="cuda", requires_grad=True)
    expected = gradients(CheckpointedChain(net, steps), x, net.step.parameters())
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    taken = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((taken + 700 * MiB) / total)
    try:
        net.runs.clear()
        with pytest.warns(UserWarning, match="Memory ran out"):
            got = gradients(CheckpointedChain(net, steps, plan="graph"), x, net.step.parameters())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(net.runs) > steps
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_layers_give_the_plain_gradient_in_less_memory(dtype):
    torch.manual_seed(0)
    net = Block().cuda().to(dtype).requires_grad_(False)
    x = torch.randn(64, 32, 32, 32, device="cuda", dtype=dtype, requires_grad=True)
    expected = gradients(lambda x: plain(net, M, x), x, ())
    got = gradients(CheckpointedChain(net, M, frozen="auto"), x, ())
    assert torch.equal(got[0], expected[0])
    off = (got[1] - expected[1]).float().norm() / expected[1].float().norm()
    assert off < (1e-5 if dtype == torch.float32 else 2e-2)

    def run(frozen):
        chain = CheckpointedChain(net, M, plan="graph", frozen=frozen)
        return peak(lambda: torch.autograd.grad(chain(x).square().mean(), x))

    assert run("auto") < 0.6 * run("off")


def test_the_stream_of_a_gpu_that_only_frozen_weights_use_is_replayed():
    """Nothing that enters the chain is on the GPU, nor anything that is trained."""
    net = nn.Linear(4, 4).cuda().requires_grad_(False)
    x = torch.randn(3, 4, requires_grad=True)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, i):
            y = self.net(x.cuda())
            return torch.tanh(y + torch.randn_like(y)).cpu()

    expected = gradients(lambda x: plain(Step(), M, x), x, ())
    assert all(map(torch.equal, gradients(CheckpointedChain(Step(), M), x, ()), expected))


def test_a_compiled_step_on_the_gpu():
    torch.manual_seed(0)
    net = Block().cuda().double()
    compiled = torch.compile(net)
    x = torch.randn(2, 32, 8, 8, device="cuda", dtype=torch.float64, requires_grad=True)
    expected = gradients(lambda x: plain(net, 3, x), x, net.parameters())
    got = gradients(CheckpointedChain(compiled, 3, verify="close"), x, net.parameters())
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-12)


def test_micro_batches_and_losses_on_every_state():
    torch.manual_seed(0)
    net = Block().cuda().double()
    x = torch.randn(6, 32, 8, 8, device="cuda", dtype=torch.float64, requires_grad=True)
    expected = gradients(lambda x: plain(net, M, x), x, net.parameters())
    got = gradients(CheckpointedChain(net, M, micro_batch=2), x, net.parameters())
    states = CheckpointedChain(net, M, store="host").trajectory
    here = gradients(lambda x: torch.stack(states(x)[1:]), x, net.parameters())
    there = gradients(lambda x: torch.stack(states_of(net, M, x)[1:]), x, net.parameters())
    for g, e in zip([*got, *here], [*expected, *there], strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-14)


def test_noise_by_its_seed_is_the_same_on_every_device():
    x = torch.zeros(1000)
    assert torch.equal(SeededNoise(7)(x.cuda(), 3).cpu(), SeededNoise(7)(x, 3))


@pytest.mark.parametrize("sample", [(1, 32, 8, 8), (4, 1, 8, 8), (1, 1, 8, 8)], ids=str)
@pytest.mark.parametrize("store", ["host", "folder"])
def test_states_elsewhere_keep_the_strides_of_channels_last(store, sample, tmp_path):
    seen = []

    def step(x, i):
        seen.append((i, x.stride()))
        return torch.sin(x)

    x = torch.randn(sample, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
    y = CheckpointedChain(step, M, store=tmp_path if store == "folder" else store)(x)
    first = dict(seen)
    seen.clear()
    y.sum().backward()

    assert len(seen) == M - 1
    assert all(first[i] == stride for i, stride in seen)


def test_pinned_memory_is_that_of_the_last_size_only():
    w = torch.tensor(0.9, device="cuda", requires_grad=True)
    chain = CheckpointedChain(lambda x, i: torch.sin(w * x), 50, store="host")
    for size in (1000, 3000, 2000, 5000, 4000):
        chain(torch.ones(size, device="cuda")).sum().backward()
        (transfers,) = chain.store._transfers.values()
        spare = [buffer for some in transfers.spare.values() for buffer in some]
        assert all(buffer.is_pinned() for buffer in spare)
        assert sum(buffer.numel() for buffer in spare) <= 50 * size


def test_a_report_has_the_seconds_of_the_gpu_and_its_norms():
    w = torch.tensor(0.9, device="cuda", requires_grad=True)
    slow = torch.randn(2048, 2048, device="cuda") / 64
    chain = CheckpointedChain(lambda x, i: torch.sin(w * x) + 0 * (slow @ slow)[0, 0], 4)
    chain(torch.ones(100, device="cuda", requires_grad=True)).sum().backward()
    rows = chain.report().steps

    assert all(row.forward_seconds > 0 and row.backward_seconds > 0 for row in rows)
    assert all(row.cotangent_norm > 0 for row in rows)


def test_a_meter_of_the_current_gpu_and_one_by_its_index_are_of_one_allocator():
    with meter("cuda") as outer:
        x = torch.ones(MiB, device="cuda")
        del x
        with meter("cuda:0") as inner:
            y = torch.ones(MiB // 4, device="cuda")
        del y

    assert outer.peak_bytes == 4 * MiB
    assert inner.peak_bytes == MiB


@pytest.mark.parametrize("backend", ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
def test_a_rerun_with_attentions_outputs_saves_the_bits_of_a_plain_run(backend):
    x = torch.randn(2, 4, 128, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def block():
        with sdpa_kernel(SDPBackend[backend]):
            return F.scaled_dot_product_attention(x.sin(), x, x).cos()

    def recorded():
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda nothing: nothing):
            saved.append(block())
        return [t for t in saved if t.is_floating_point()]

    with keeping() as outputs, torch.no_grad():
        block()
    expected = recorded()
    with replaying(outputs):
        found = recorded()

    # Not the gradients, because the backward kernels do not repeat their bits.
    assert len(outputs.calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
