"""Each rule that makes a chain's gradients those of the plain loop, in the shortest case."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from chainograd import ChainError, CheckpointedChain, ReplayError, binomial
from chainograd.metering import meter
from chainograd.tensors.digest import digest
from tests.problems import plain

M = 4
every_plan = pytest.mark.parametrize("plan", ["nodes", "graph", binomial(M, slots=1)], ids=str)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


def same_gradients(step, inputs, plan, loop=plain):
    """See that a chain gives the loss and the gradients of a loop, to the bit."""
    outcomes = []
    for run in (lambda x: loop(step, M, x), CheckpointedChain(step, M, plan=plan)):
        loss = run(inputs[0]).float().square().sum()
        outcomes.append([loss, *torch.autograd.grad(loss, inputs)])
    assert all(map(torch.equal, *outcomes))


@every_plan
def test_a_batch_of_one_keeps_its_order_in_memory(plan):
    net = nn.BatchNorm2d(8).eval()
    net.running_mean.normal_()
    x = torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    strides = []

    def step(x, i):
        strides.append(x.stride())
        return torch.tanh(net(x))

    same_gradients(step, [x, net.weight, net.bias], plan)
    assert set(strides) == {x.stride()}


class Product(torch.autograd.Function):
    """A product whose derivative multiplies too, as autocast sees."""

    @staticmethod
    def forward(ctx, x, w):
        """Multiply."""
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, g):
        """Multiply back."""
        x, w = (t.float() for t in ctx.saved_tensors)
        return g.float() @ w.t(), x.t() @ g.float()


@every_plan
@pytest.mark.parametrize("around", ["forward", "backward"])
def test_gradients_are_computed_under_the_autocast_of_the_backward_pass(around, plan):
    w, x = leaf(8, 8), leaf(4, 8)
    regions = [torch.autocast("cpu", torch.bfloat16, enabled=around == half, cache_enabled=False)
               for half in ("forward", "backward")]  # fmt: skip

    def outcome(run):
        with regions[0]:
            loss = run(x).square().sum()
        with regions[1]:
            return [loss, *torch.autograd.grad(loss, [w, x])]

    def step(x, i):
        return torch.tanh(Product.apply(x, w).float())

    expected = outcome(lambda x: plain(step, M, x))
    assert all(map(torch.equal, outcome(CheckpointedChain(step, M, plan=plan)), expected))


@every_plan
def test_casts_of_autocast_are_not_shared_by_steps(plan):
    net, x = nn.Linear(8, 8), leaf(4, 8)

    def step(x, i):
        # Inside of another region it does not clear its cache in the end.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
            return torch.tanh(net(x))

    def loop(step, M, x):
        for i in range(M):
            torch.clear_autocast_cache()
            x = step(x, i)
        return x

    with torch.autocast("cpu", torch.bfloat16):
        same_gradients(step, [x, net.weight, net.bias], plan, loop)


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


def test_a_leaf_of_the_state_that_needs_no_gradient_gets_none():
    w = leaf(3)
    seen = []

    def step(state, i):
        x, c = state
        seen.append(c.requires_grad)
        return torch.sin(w * x + c), 2 * c

    y, c = CheckpointedChain(step, M)((torch.ones(3), torch.ones(3)))
    y.sum().backward()
    assert not c.requires_grad
    assert not any(seen)


@pytest.mark.parametrize("numel", [6, 1 << 18], ids=["one chunk", "chunks"])
def test_a_digest_sees_the_same_values_in_another_order(numel):
    x = torch.arange(float(numel))
    rolled = x.roll(1 << 17 if numel > 6 else 2)

    assert torch.equal(digest([x])[0][0], digest([x.clone()])[0][0])
    assert not torch.equal(digest([x])[0][0], digest([rolled])[0][0])


@every_plan
def test_a_chain_that_cuts_every_gradient_off_is_refused(plan):
    w = leaf(3)
    chain = CheckpointedChain(lambda x, i: torch.sin(w.detach() * x.detach()), M, plan=plan)

    with pytest.raises(ChainError, match="Step 0 cuts every gradient off"):
        chain(torch.ones(3, requires_grad=True))


def test_a_sampler_that_does_not_use_what_it_reaches_is_not_refused():
    w = leaf(3)
    frozen = torch.randn(3)
    chain = CheckpointedChain(lambda x, i: torch.sin(frozen * x), M, params=[w])

    assert not chain(torch.ones(3)).requires_grad


@every_plan
def test_a_transform_that_changes_its_cotangent_in_place_is_refused(plan):
    w = leaf(3)
    chain = CheckpointedChain(
        lambda x, i: x + w, M, plan=plan, grad_transform=lambda i, g: g.mul_(0.5)
    )

    with pytest.raises(ChainError, match=r"changed the cotangent of state \d in place"):
        chain(torch.ones(3)).square().sum().backward()


@every_plan
def test_a_transform_sees_the_last_state_that_a_loss_looks_at(plan):
    w, seen = torch.full((3,), 2.0, requires_grad=True), []

    def halved(i, g):
        seen.append(i)
        return g / 2

    chain = CheckpointedChain(lambda x, i: w * x, M, plan=plan, grad_transform=halved)
    states = chain.trajectory(torch.ones(3, requires_grad=True))
    states[2].sum().backward()

    assert seen == [2, 1, 0]
    assert torch.equal(states[0].grad, torch.full((3,), 4 / 8))


class Count:
    """Counts, and is nobody's own."""

    calls = 0


def test_a_step_that_is_another_one_when_it_was_measured_is_refused():
    w, count = leaf(3), Count()

    def step(x, i):
        count.calls += 1
        return torch.sin(w * x) * (1 + count.calls / 10)

    with pytest.raises(ReplayError, match="Step 0 gave one state when the byte budget"):
        CheckpointedChain(step, M, plan="1GiB")(torch.ones(3))


def test_measuring_leaves_no_trace_in_what_a_step_keeps():
    w, log, total = leaf(3), [], torch.zeros(())

    def step(x, i):
        log.append(i)
        total.add_(1)
        return torch.sin(w * x)

    CheckpointedChain(step, M, plan="1GiB")(torch.ones(3)).sum().backward()
    assert log == list(range(M))
    assert total == M


def test_measuring_a_step_that_changes_a_large_tensor_of_its_own_is_refused():
    w, total = leaf(3), torch.zeros(1 << 17)

    def step(x, i):
        total.add_(1)
        return torch.sin(w * x)

    with pytest.raises(ChainError, match="changed one of its own tensors in place"):
        CheckpointedChain(step, M, plan="1GiB")(torch.ones(3))


@pytest.mark.parametrize("plan", ["nodes", binomial(M, slots=1)], ids=str)
def test_noise_that_shows_in_gradients_only_is_seen_to_be_other_noise(plan):
    w, generator = leaf(3), torch.Generator().manual_seed(1)

    def step(x, i):
        y = torch.sin(w * x)
        mask = torch.rand(3, generator=generator)
        return y.detach() + mask * (y - y.detach())

    y = CheckpointedChain(step, M, plan=plan)(torch.ones(3))
    with pytest.raises(ReplayError, match="drew other noise when it ran again"):
        y.sum().backward()


@pytest.mark.parametrize("plan", ["nodes", binomial(M, slots=1)], ids=str)
def test_a_step_that_detaches_a_part_when_it_runs_again_is_refused(plan):
    w, v, settings = leaf(3), leaf(3), {"trains": True}

    def step(x, i):
        return torch.sin(w * x) + (v if settings["trains"] else v.detach())

    y = CheckpointedChain(step, M, plan=plan)(torch.ones(3))
    settings["trains"] = False
    with pytest.raises(ReplayError, match="with another graph than in the forward pass"):
        y.sum().backward()


def test_a_forward_pass_takes_the_memory_of_its_nodes_and_one_step_without_a_graph():
    w, x, peaks = torch.randn(64, 4096, requires_grad=True), torch.randn(64, 64), []

    def step(x, i):
        if i == M - 1:  # whose graph is kept
            peaks.append(whole.peak_bytes)
        h = x @ w
        for _ in range(8):
            h = torch.sin(h)
        return torch.tanh(h @ w.t())

    chain = CheckpointedChain(step, M)
    with meter() as alone, torch.no_grad():
        step(x, 0)
    with meter() as whole:
        y = chain(x)

    assert y.requires_grad
    nodes = M * x.nbytes
    assert peaks[0] <= alone.peak_bytes + nodes + (1 << 17)


@every_plan
def test_settings_of_torch_are_those_of_the_forward_pass(plan):
    w, x = (leaf(4).double().detach().requires_grad_() for _ in range(2))

    def step(x, i):
        return torch.sin(w * x * torch.linspace(0.1, 0.7, 4))

    def outcome(run):
        torch.set_default_dtype(torch.float64)
        try:
            y = run(x)
        finally:
            torch.set_default_dtype(torch.float32)
        return torch.autograd.grad(y.sum(), [w, x])

    expected = outcome(lambda x: plain(step, M, x))
    assert all(map(torch.equal, outcome(CheckpointedChain(step, M, plan=plan)), expected))
    assert torch.get_default_dtype() is torch.float32


@every_plan
def test_a_buffer_that_a_step_reads_is_as_it_was_when_the_step_ran_first(plan):
    nets = [spectral_norm(nn.Linear(8, 8)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x, grads = torch.randn(4, 8), []
    runs = plain, lambda step, M, x: CheckpointedChain(step, M, plan=plan)(x)
    for net, run in zip(nets, runs, strict=True):
        run(lambda x, i, net=net: torch.tanh(net(x)), M, x).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(map(torch.equal, *grads))
    assert all(map(torch.equal, *([*net.buffers()] for net in nets)))


@every_plan
def test_flags_of_weights_are_those_of_each_step_and_afterwards_the_callers(plan):
    w, v, x = leaf(3), leaf(3), torch.ones(3)

    def step(x, i):
        w.requires_grad_(i >= 2)
        return torch.sin(w * x) + v

    grads = []
    for run in (lambda x: plain(step, M, x), CheckpointedChain(step, M, plan=plan, params=[w])):
        w.requires_grad_()
        w.grad = v.grad = None
        y = run(x)
        y.sum().backward()
        grads.append([w.grad, v.grad])
        assert w.requires_grad
    assert all(map(torch.equal, *grads))


@every_plan
def test_a_step_that_calls_backward_on_what_is_outside_is_refused(plan):
    w = leaf(3)

    def step(x, i):
        with torch.enable_grad():
            (w * x.detach()).sum().backward()
        return torch.sin(w * x)

    with pytest.raises(ChainError, match=r"calls `backward\(\)` on something"):
        CheckpointedChain(step, M, plan=plan)(torch.ones(3))


@every_plan
def test_a_step_that_needs_its_graph_begins_with_the_same_noise_again(plan):
    w, x = leaf(3), leaf(3)

    def step(x, i):
        noise = torch.randn(3)
        with torch.enable_grad():
            own = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(torch.sin(w.detach() * own + noise).sum(), own)
        return torch.tanh(w * x + g)

    grads = []
    for run in (lambda x: plain(step, M, x), CheckpointedChain(step, M, plan=plan)):
        torch.manual_seed(1)
        grads.append(torch.autograd.grad(run(x).sum(), [w, x]))
    assert all(map(torch.equal, *grads))


@pytest.fixture
def put_off(monkeypatch):
    """Let every verdict be one that is asked for later, as on an accelerator."""
    monkeypatch.setattr("chainograd.replay.verify.is_ready", lambda tensor: False)


def changing():
    """Return a step that is another one in each run."""
    w, count = torch.ones(3, requires_grad=True), Count()

    def step(x, i):
        count.calls += 1
        return torch.sin(w * x) * (1 + count.calls / 10)

    return step


@pytest.mark.parametrize("plan", ["nodes", binomial(M, slots=1)], ids=str)
@pytest.mark.parametrize("verify", ["exact", "close"])
def test_verdicts_that_were_put_off_are_asked_for(put_off, verify, plan):
    y = CheckpointedChain(changing(), M, plan=plan, verify=verify)(torch.ones(3))
    with pytest.raises(ReplayError, match="with another result"):
        y.sum().backward()


@pytest.mark.parametrize("first", [0, 2], ids=["to x_T", "to a state in the middle"])
def test_verdicts_that_were_put_off_are_asked_for_where_a_pass_ends(put_off, first):
    states = CheckpointedChain(changing(), M).trajectory(torch.ones(3, requires_grad=True))
    with pytest.raises(ReplayError, match="with another result"):
        torch.autograd.grad(states[-1].sum(), states[first])


def test_verdicts_on_what_was_measured_are_asked_for_in_the_forward_pass(put_off):
    with pytest.raises(ReplayError):
        CheckpointedChain(changing(), M, plan="1GiB")(torch.ones(3))


def test_verdicts_that_were_put_off_stop_no_right_gradient(put_off):
    w, x = leaf(3), leaf(3)

    same_gradients(lambda x, i: torch.sin(w * x), [x, w], binomial(M, slots=1))


@every_plan
def test_a_transform_of_the_first_state_reaches_its_gradient_where_a_step_uses_it_twice(plan):
    w, grads = leaf(3), []
    chain = CheckpointedChain(
        lambda x, i: torch.sin(w * x) + x, M, plan=plan, grad_transform=lambda i, g: g / 2
    )
    for run in (chain, lambda x: chain.trajectory(x)[-1]):
        x = torch.ones(3, requires_grad=True)
        grads.append(torch.autograd.grad(run(x).sum(), x)[0])

    torch.testing.assert_close(grads[0], grads[1])


def test_a_step_that_goes_on_in_numpy_cuts_its_gradient_off():
    net = nn.Linear(4, 4)
    chain = CheckpointedChain(lambda x, i: torch.tensor(net(x).detach().numpy()), 3)

    with pytest.raises(ChainError, match=r"Step 0 cuts every gradient off \(.*test_exact.py"):
        chain(torch.randn(2, 4))
