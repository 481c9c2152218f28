"""Steps and surroundings that are out of the ordinary: the plain loop's gradient, or a reason."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from chainograd import ChainError, CheckpointedChain, binomial, keep_last, meter
from chainograd.state import detached_leaf
from tests.problems import Net, plain

M = 5
PLANS = {
    "nodes": "nodes",
    "graph": "graph",
    "last 2": keep_last(M, 2),
    "1 slot": binomial(M, slots=1),
    "2 slots": binomial(M, slots=2),
    "1 MiB": "1 MiB",
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def leaf():
    return torch.linspace(0.5, 1.2, 4, dtype=torch.float64).requires_grad_()


@every_plan
@pytest.mark.parametrize("at", [0, 2, M - 1])
def test_a_step_may_return_its_input_or_a_parameter_itself(plan, at):
    def run(loop, w, x):
        def step(x, i):
            return w if i == at else x if i % 2 else torch.sin(w * x)

        return torch.autograd.grad(loop(step, x).sum(), (w, x), allow_unused=True)

    w, x = leaf(), leaf()
    expected = run(lambda step, x: plain(step, M, x), w, x)
    got = run(lambda step, x: CheckpointedChain(step, M, plan=plan)(x), w, x)
    for g, e in zip(got, expected, strict=True):
        assert g is e is None or torch.equal(g, e)


@every_plan
@pytest.mark.parametrize("store", ["device", "folder"])
def test_the_state_may_change_its_structure_share_memory_and_be_expanded(plan, store, tmp_path):
    w, x = leaf(), leaf()

    def step(state, i):
        parts = [leaf for leaf in torch.utils._pytree.tree_leaves(state) if torch.is_tensor(leaf)]
        y = torch.sin(w * parts[0] + parts[-1])
        return [{"x": y, "view": y[:1], "none": None, "n": i}, (y, y), y, y.sum().expand(4)][i % 4]

    def gradients(run):
        return torch.autograd.grad(run(x)["x"].sum(), (w, x))

    store = tmp_path if store == "folder" else store
    got = gradients(CheckpointedChain(step, M, plan=plan, store=store))
    assert all(map(torch.equal, got, gradients(lambda x: plain(step, M, x))))


@every_plan
def test_a_state_with_lazy_signs_is_compared_like_any_other(plan):
    w = leaf()

    def step(state, i):
        x, _ = state
        negated = torch.complex(x, x).conj().imag  # kept by torch as x with a minus to come
        return torch.sin(x * w), negated

    y, _ = CheckpointedChain(step, M, plan=plan)((torch.ones(4).double(), torch.ones(4).double()))
    assert torch.equal(
        torch.autograd.grad(y.sum(), w)[0],
        torch.autograd.grad(plain(step, M, (torch.ones(4).double(),) * 2)[0].sum(), w)[0],
    )


@every_plan
def test_a_hook_given_after_the_forward_pass_fires_once_with_the_whole_gradient(plan):
    w = leaf()

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
def test_a_parameter_that_is_named_twice_is_counted_once(plan):
    w, x = leaf(), torch.ones(4).double()

    def step(x, i):
        return torch.sin(w * x)

    y = CheckpointedChain(step, M, plan=plan, params=[w, w])(x)
    expected = torch.autograd.grad(plain(step, M, x).sum(), w)
    assert torch.equal(torch.autograd.grad(y.sum(), w)[0], expected[0])


@every_plan
def test_a_parameter_frozen_after_the_forward_pass_gets_no_gradient_and_stops_none(plan):
    w, x = leaf(), leaf()

    def step(x, i):
        return torch.sin(w * x)

    expected = torch.autograd.grad(plain(step, M, x).sum(), x)[0]
    y = CheckpointedChain(step, M, plan=plan)(x)
    w.requires_grad_(False)
    y.sum().backward()

    assert w.grad is None
    assert torch.equal(x.grad, expected)


@every_plan
def test_another_network_of_the_same_object_may_learn_in_between(plan):
    class Trainer:
        def __init__(self):
            torch.manual_seed(0)
            self.generator, self.critic = Net(4, torch.float64), torch.nn.Linear(4, 1)

        def step(self, x, i):
            return self.generator(x, i)

    trainer, x = Trainer(), torch.ones(2, 4).double()
    wanted = list(trainer.generator.parameters())
    expected = torch.autograd.grad(plain(trainer.step, M, x).sum(), wanted)
    y = CheckpointedChain(trainer.step, M, plan=plan)(x)
    with torch.no_grad():
        trainer.critic.weight.add_(1)

    assert all(map(torch.equal, torch.autograd.grad(y.sum(), wanted), expected))


class Sine(torch.nn.Module):
    def forward(self, w):
        return torch.sin(w)


@every_plan
@pytest.mark.parametrize("backward_inside", [True, False])
def test_cached_parametrizations_are_made_anew_for_every_step(plan, backward_inside):
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 4).double()
    parametrize.register_parametrization(net, "weight", Sine())
    x = torch.ones(2, 4).double()

    def step(x, i):
        return torch.tanh(net(x))

    expected = torch.autograd.grad(plain(step, M, x).sum(), list(net.parameters()))
    with parametrize.cached():
        loss = CheckpointedChain(step, M, plan=plan)(x).sum()
        if backward_inside:
            got = torch.autograd.grad(loss, list(net.parameters()))
    if not backward_inside:
        got = torch.autograd.grad(loss, list(net.parameters()))
    assert all(map(torch.equal, got, expected))


@every_plan
def test_autocast_inside_a_step_adds_up_gradients_in_full(plan):
    # It keeps its cast of a leaf, and adds up in that what comes back from all uses of it. In a
    # loop the state is no leaf, nor is an argument that was computed.
    first, second = torch.randn(2, 8, 8)
    x, c = torch.randn(2, 4, 8).unbind()

    def step(x, i, c):
        with torch.autocast("cpu", torch.bfloat16):
            both = [(t @ first).float() + (t @ second).float() * t for t in (x, c)]
        return x + torch.tanh(sum(both))

    def gradients(run):
        x_T, given = x.clone().requires_grad_(), c.clone().requires_grad_()
        return torch.autograd.grad(run(x_T * 1, given * 1).square().sum(), (x_T, given))

    expected = gradients(lambda x, c: plain(lambda x, i: step(x, i, c), M, x))
    assert all(map(torch.equal, gradients(CheckpointedChain(step, M, plan=plan)), expected))


@pytest.mark.parametrize("layout", ["strided", "sparse"])
def test_what_stands_in_for_a_tensor_is_another_one(layout):
    tensor = torch.eye(2) if layout == "strided" else torch.eye(2).to_sparse()

    assert detached_leaf(tensor).requires_grad
    assert not tensor.requires_grad


@every_plan
def test_a_state_that_is_detached_in_place_is_refused_with_the_way_out(plan):
    def step(x, i):
        return torch.sin(x.detach_())

    with pytest.raises(RuntimeError) as seen:
        CheckpointedChain(step, M, plan=plan)(leaf() * 1).sum().backward()

    assert any("write `x = x.detach()`" in note for note in seen.value.__notes__)


@every_plan
def test_arguments_made_in_inference_mode_are_taken(plan):
    w = leaf()
    with torch.inference_mode():
        c = torch.ones(4).double()

    def step(x, i, c):
        return torch.sin(x * w) + c

    x = torch.ones(4).double()
    got = torch.autograd.grad(CheckpointedChain(step, M, plan=plan)(x, c).sum(), w)
    assert torch.equal(got[0], torch.autograd.grad(plain(step, M, x, c).sum(), w)[0])


def guided(net, w):
    def step(x, i):
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(net(y).square().sum(), y)
        return x + w * g

    return step


def test_a_step_may_take_gradients_for_itself_where_nothing_is_trained():
    net = torch.nn.Linear(3, 1).requires_grad_(False)
    step, x = guided(net, torch.tensor(0.1)), torch.ones(2, 3)

    y = CheckpointedChain(step, M)(x)

    assert not y.requires_grad
    assert torch.equal(y, plain(step, M, x))


@every_plan
def test_a_gradient_that_a_step_takes_for_itself_repeats_with_frozen_layers(plan):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(4, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.SiLU()]
    net = torch.nn.Sequential(*layers, torch.nn.Conv2d(32, 4, 3)).eval().requires_grad_(False)
    net[1].running_var.uniform_(0.3, 2)
    net[1].running_mean.uniform_(-1, 1)
    w, x = torch.tensor(0.05, requires_grad=True), torch.randn(4, 4, 16, 16)

    got = torch.autograd.grad(
        CheckpointedChain(guided(net, w), M, plan=plan, frozen="auto")(x).sum(), w
    )
    expected = torch.autograd.grad(plain(guided(net, w), M, x).sum(), w)

    assert torch.equal(got[0], expected[0])


def test_frozen_layers_keep_less_of_a_gradient_that_a_step_takes_in_its_first_run():
    layers = [nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU()] * 8
    net, x = nn.Sequential(*layers).requires_grad_(False), torch.randn(4, 4, 16, 16)

    def peak(frozen):
        w = torch.tensor(0.1, requires_grad=True)
        chain = CheckpointedChain(guided(net, w), M, frozen=frozen)
        with meter() as reading:
            chain(x)
        return reading.peak_bytes

    assert peak("auto") < 0.6 * peak("off")


@pytest.mark.parametrize("frozen", ["off", "auto"])
def test_checkpointing_inside_a_step_is_exact(frozen):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.GroupNorm(2, 4),
                              torch.nn.SiLU(), torch.nn.GroupNorm(2, 4),
                              torch.nn.SiLU(), torch.nn.Conv2d(4, 2, 3, padding=1))  # fmt: skip
    net.requires_grad_(False)
    x = torch.randn(1, 2, 4, 4, requires_grad=True)

    def step(x, i):
        return torch.tanh(checkpoint(net, x, use_reentrant=False))

    expected = torch.autograd.grad(plain(step, M, x).sum(), x)[0]
    chain = CheckpointedChain(step, M, frozen=frozen)
    assert torch.equal(torch.autograd.grad(chain(x).sum(), x)[0], expected)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 3, 3)])
def test_frozen_layers_take_empty_batches_and_leave_complex_ones_to_torch(shape):
    net = torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.SiLU()).requires_grad_(False)
    x = torch.ones(shape, requires_grad=True)
    CheckpointedChain(lambda x, i: net(x), 3, frozen="auto")(x).sum().backward()
    assert x.grad.shape == shape

    weight = torch.randn(4, 4, 3, 3, dtype=torch.complex64) / 6
    z = torch.ones(shape, dtype=torch.complex64, requires_grad=True)

    def step(z, i):
        return torch.conv2d(z, weight, padding=1)

    def gradient(run):
        return torch.autograd.grad(run(z).abs().sum(), z)[0]

    assert torch.equal(
        gradient(CheckpointedChain(step, 3, frozen="auto")), gradient(lambda z: plain(step, 3, z))
    )


def test_a_module_whose_parameters_have_no_shape_yet_is_refused_with_the_way_out():
    net = torch.nn.LazyLinear(4)

    with pytest.raises(ChainError, match=r"lazy.*no_grad"):
        CheckpointedChain(lambda x, i: net(x), M)(torch.ones(2, 4))


def test_a_transform_of_cotangents_that_returns_nothing_is_refused():
    w = leaf()
    chain = CheckpointedChain(lambda x, i: torch.sin(w * x), M, grad_transform=lambda i, g: None)

    with pytest.raises(ChainError, match=r"grad_transform.*Return `g` itself"):
        chain(torch.ones(4).double()).sum().backward()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: g.sum(), r"a real cotangent of shape \(\) of step 3, .* a real .* \(4,\)"),
        (lambda g: g[None], r"a real cotangent of shape \(1, 4\) of step 3"),
        (lambda g: g * 1j, r"a complex cotangent of shape \(4,\) of step 3"),
        (lambda g: 1.0, r"a float for a cotangent of step 3"),
    ],
    ids=["summed", "stacked", "complex", "number"],
)
def test_a_transform_that_returns_another_kind_of_cotangent_is_refused(change, said):
    w = leaf()
    chain = CheckpointedChain(
        lambda x, i: torch.sin(w * x), 4, grad_transform=lambda i, g: change(g)
    )

    with pytest.raises(ChainError, match=f"`grad_transform` gave {said}"):
        chain(torch.ones(4).double()).sum().backward()


@pytest.mark.parametrize("plan", ["nodes", "graph"])
def test_a_step_that_changes_a_container_among_its_arguments_is_refused(plan):
    def step(x, i, options):
        options["n"] += 1
        return x * options["n"]

    with pytest.raises(ChainError, match="changed a list or dict"):
        CheckpointedChain(step, 3, plan=plan)(torch.ones(2, requires_grad=True), {"n": 1})


def test_containers_that_steps_only_read_are_no_trouble():
    w = torch.ones(2, requires_grad=True)

    def step(x, i, options):
        return x * options["w"][0] + len(options["w"])

    x = CheckpointedChain(step, 3)(torch.ones(2), {"w": [w]})

    assert torch.autograd.grad(x.sum(), w)[0].tolist() == [6.0, 6.0]
