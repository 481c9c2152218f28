"""Every way of differentiating that torch offers, through a chain and through the plain loop."""

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.utils._pytree as pytree
from torch.autograd.functional import hessian as eager_hessian
from torch.autograd.functional import hvp, jacobian, jvp, vhp, vjp
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap
from torch.func import jvp as func_jvp
from torch.func import vjp as func_vjp
from torch.utils.checkpoint import checkpoint

from chainograd import ChainError, CheckpointedChain, binomial, keep_last
from tests.problems import Net, plain

# Torch's own forward-mode AD warns that one of its parts is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")

M = 4
PLANS = {"nodes": "nodes", "graph": "graph", "last 2": keep_last(M, 2),
         "2 slots": binomial(M, slots=2)}  # fmt: skip


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net(3, torch.float64)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(2, 3, dtype=torch.float64)


def same(transform, net, plan="nodes"):
    """See that a transform gives the same through a chain and through the plain loop."""
    torch.manual_seed(2)
    expected = transform(lambda step: lambda *args, **kwargs: plain(step, M, *args, **kwargs))
    torch.manual_seed(2)
    got = transform(lambda step: CheckpointedChain(step, M, plan=plan))
    pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
        assert b.abs().max() > 1e-6


FUNC = {
    "grad": lambda f, x: grad(lambda x: f(x).sum())(x),
    "vjp": lambda f, x: func_vjp(f, x)[1](torch.ones_like(x)),
    "jvp": lambda f, x: func_jvp(f, (x,), (torch.ones_like(x),)),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(lambda x: f(x).sum())(x),
    "jacrev of jacrev": lambda f, x: jacrev(jacrev(lambda x: f(x).sum()))(x),
    "third derivative": lambda f, x: jacrev(hessian(lambda x: f(x).sum()))(x[0]),
    "vmap": lambda f, x: vmap(f)(x),
    "vmap of grad": lambda f, x: vmap(grad(lambda x: f(x).sum()))(x),
    "vmap of jvp": lambda f, x: vmap(lambda v: func_jvp(f, (x,), (v,)))(torch.stack([x, x.cos()])),
}


@pytest.mark.parametrize("transform", FUNC.values(), ids=FUNC)
def test_torch_func_of_the_state(transform, net, x):
    same(lambda run: transform(run(net), x), net)


def test_torch_func_of_parameters_that_are_handed_in(net, x):
    parameters = dict(net.named_parameters())

    def transform(run):
        def loss(parameters):
            return run(lambda x, i: functional_call(net, parameters, (x, i)))(x).sum()

        return grad(loss)(parameters), hessian(loss)(parameters)

    same(transform, net)


def test_torch_func_of_arguments_and_of_a_state_that_is_a_dict(net, x):
    def step(state, i, scale, *, shift):
        return {"x": net(state["x"], i) * scale + shift, "sum": state["sum"] + state["x"].sum()}

    def transform(run):
        def loss(scale, shift):
            end = run(step)({"x": x, "sum": x.sum()}, scale, shift=shift)
            return end["x"].sum() * end["sum"]

        return grad(loss, argnums=(0, 1))(x[0], x[1])

    same(transform, net)


def test_per_sample_gradients_and_those_of_captured_parameters_both_arrive(net, x):
    def transform(run):
        y = vmap(grad(lambda x: run(net)(x).sum()))(x)
        return y, torch.autograd.grad(y.square().sum(), net.w)

    same(transform, net)


def batched(y, inputs):
    rows = torch.randn(5, *y.shape, dtype=y.dtype)
    return torch.autograd.grad(y, inputs, rows, is_grads_batched=True)


EAGER = {
    "batched gradients": lambda f, x, net: batched(f(x), (x, net.w, net.b)),
    "jacobian": lambda f, x, net: jacobian(f, x),
    "jacobian, vectorised": lambda f, x, net: jacobian(f, x, vectorize=True),
    "jacobian, forward mode": lambda f, x, net: jacobian(
        f, x, vectorize=True, strategy="forward-mode"
    ),
    "hessian": lambda f, x, net: eager_hessian(lambda x: f(x).sum(), x),
    "hessian, vectorised": lambda f, x, net: eager_hessian(lambda x: f(x).sum(), x, vectorize=True),
    "jvp": lambda f, x, net: jvp(f, x, torch.ones_like(x)),
    "vjp": lambda f, x, net: vjp(f, x, torch.ones_like(x)),
    "hvp": lambda f, x, net: hvp(lambda x: f(x).sum(), x, torch.ones_like(x)),
    "vhp": lambda f, x, net: vhp(lambda x: f(x).sum(), x, torch.ones_like(x)),
    "a loss on a jacobian": lambda f, x, net: torch.autograd.grad(
        jacobian(f, x, create_graph=True).square().sum(), (x, net.w)
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("transform", EAGER.values(), ids=EAGER)
def test_eager_ways_under_every_plan(transform, plan, net, x):
    x.requires_grad_()
    same(lambda run: transform(run(net), x, net), net, plan)


DUAL = {
    "state": lambda run, net, x, v: run(net)(fwAD.make_dual(x, v)),
    "argument": lambda run, net, x, v: run(net)(x, c=fwAD.make_dual(x[0], v[0])),
    "closure": lambda run, net, x, v: (
        lambda w: run(lambda x, i: torch.tanh(x @ w))(x)
    )(fwAD.make_dual(net.w.detach(), torch.ones_like(net.w))),
}  # fmt: skip


@pytest.mark.parametrize("make", DUAL.values(), ids=DUAL)
def test_dual_numbers_carry_their_tangents(make, net, x):
    def transform(run):
        with fwAD.dual_level():
            return fwAD.unpack_dual(make(run, net, x, x.cos())).tangent

    same(transform, net)


def test_the_gradient_of_a_tangent(net, x):
    x.requires_grad_()

    def transform(run):
        with fwAD.dual_level():
            y = fwAD.unpack_dual(run(net)(fwAD.make_dual(x, torch.ones_like(x))))
            return torch.autograd.grad(y.tangent.sum(), (x, net.w))

    same(transform, net)


def test_a_chain_called_before_a_dual_level_goes_back_inside_it(net, x):
    x.requires_grad_()

    def transform(run):
        y = run(net)(x)
        with fwAD.dual_level():
            return torch.autograd.grad(y.sum(), (x, net.w))

    same(transform, net)


def test_a_backward_pass_inside_a_transform_is_refused_with_the_way_out(net, x):
    x.requires_grad_()
    y = CheckpointedChain(net, M)(x)

    with pytest.raises(ChainError, match="is_grads_batched=True"):
        vmap(lambda g: torch.autograd.grad(y, x, g, retain_graph=True)[0])(torch.ones(5, 2, 3))


def test_batches_of_second_derivatives_are_refused_with_the_way_out(net, x):
    y = CheckpointedChain(net, M)(x)
    rows = torch.ones(5, *y.shape, dtype=y.dtype)

    with pytest.raises(ChainError, match=r"one by one.*vjp"):
        torch.autograd.grad(y, net.w, rows, is_grads_batched=True, create_graph=True)


def test_a_second_backward_pass_while_the_first_keeps_the_graph(net, x):
    x.requires_grad_()

    def transform(run):
        y = run(net)(x)
        first = torch.autograd.grad(y.sum(), net.w, retain_graph=True)
        y.retain_grad()
        y.square().sum().backward(inputs=[x, y])
        grads = [x.grad, y.grad]
        x.grad = None
        return first, grads

    same(transform, net)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_checkpointing_around_a_chain(plan, net, x):
    x.requires_grad_()

    def transform(run):
        y = checkpoint(run(net), x, use_reentrant=False)
        return torch.autograd.grad(y.square().sum(), (x, net.w))

    same(transform, net, plan)


def test_saved_tensors_on_the_host_and_anomaly_mode(net, x):
    x.requires_grad_()

    def transform(run):
        with torch.autograd.graph.save_on_cpu():
            y = run(net)(x)
        with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
            return torch.autograd.grad(y.sum(), (x, net.w))

    same(transform, net)


def test_a_scaled_loss_gives_scaled_gradients_to_the_bit(net, x):
    chain = CheckpointedChain(net, M)
    (g,) = torch.autograd.grad(chain(x).sum(), net.w)
    (scaled,) = torch.autograd.grad(2.0**16 * chain(x).sum(), net.w)

    assert torch.equal(scaled, 2.0**16 * g)


def test_hooks_of_modules_in_the_step_are_called_in_every_recorded_run(net, x):
    calls = []
    net.register_full_backward_hook(lambda module, gi, go: calls.append(go[0].clone()))
    x.requires_grad_()
    plain(net, M, x).sum().backward()
    expected = list(calls)
    calls.clear()

    CheckpointedChain(net, M)(x).sum().backward()

    assert len(calls) == M
    assert all(map(torch.equal, calls, expected))


def test_inference_mode_has_the_result_of_the_loop(net, x):
    with torch.inference_mode():
        y = CheckpointedChain(net, M)(x)
    assert y.is_inference()
    assert torch.equal(y, plain(net, M, x).detach())


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_gradcheck_with_arguments_and_noise_under_every_plan(plan, net, x):
    x.requires_grad_()
    c = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def step(x, i, c):
        return net(x, i, c) + 0.1 * torch.rand_like(x) * x

    def f(x, c, w):
        torch.manual_seed(3)
        return CheckpointedChain(step, M, plan=plan)(x, c)

    assert torch.autograd.gradcheck(f, (x, c, net.w))
    assert torch.autograd.gradgradcheck(f, (x, c, net.w))
    assert torch.autograd.gradcheck(f, (x, c, net.w), check_batched_grad=True, fast_mode=True)


# Torch silences this warning of its own, which is an error here before it can.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
class TestCompile:
    """torch.compile of the step, and of what surrounds a chain."""

    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_of_the_step(self, backend, plan, net, x):
        x.requires_grad_()

        def gradients(step):
            y = CheckpointedChain(step, M, plan=plan, params=net.parameters())(x)
            return torch.autograd.grad(y.sum(), (x, net.w))

        expected = gradients(net)
        got = gradients(torch.compile(net, backend=backend))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)

    def test_of_the_step_finds_its_parameters_by_itself(self, net, x):
        CheckpointedChain(torch.compile(net, backend="eager"), M)(x).sum().backward()
        expected = torch.autograd.grad(plain(net, M, x).sum(), net.w)[0]

        torch.testing.assert_close(net.w.grad, expected, rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_of_what_surrounds_the_chain(self, backend, net, x):
        x.requires_grad_()
        chain = CheckpointedChain(net, M)

        def loss(x):
            return (chain(2 * x) * x).square().sum()

        expected = torch.autograd.grad(loss(x), (x, net.w))
        compiled = torch.compile(loss, backend=backend)
        for _ in range(2):
            got = torch.autograd.grad(compiled(x), (x, net.w))
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), loss(x), rtol=1e-12, atol=1e-13)
