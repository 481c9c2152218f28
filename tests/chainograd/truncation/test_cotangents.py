"""Transforms of cotangents against a sweep back that is written out step by step."""

import math

import pytest
import torch

from chainograd import CheckpointedChain, clamped, clipped, scaled
from tests.problems import PLANS, M, Net, Noisy, plain, states_of


def swept(step, x, transform, parameters):
    """Send a cotangent of ones back, step by step; return those of the nodes and the gradients."""
    with torch.no_grad():
        states = states_of(step, M, x)
    g, sums, nodes = torch.ones_like(states[M]), [torch.zeros_like(p) for p in parameters], {}
    for i in reversed(range(M)):
        before = states[i].detach().requires_grad_()
        g, *grads = torch.autograd.grad(step(before, i), [before, *parameters], g)
        g = nodes[i] = transform(i, g)
        sums = [s + d for s, d in zip(sums, grads, strict=True)]
    return nodes, sums


def by_hand_scaled(i, g):
    return (0.5 + i / 10) * g


def by_hand_clipped(i, g):
    norm = g.square().sum().sqrt()
    return g * (1.5 / norm) if norm > 1.5 else g


def by_hand_clipped_by_sample(i, g):
    return torch.stack([row * (0.8 / row.norm()) if row.norm() > 0.8 else row for row in g])


def by_hand_clamped(i, g):
    return torch.where(g.abs() > 0.6, 0.6 * g.sign(), g)


TRANSFORMS = {
    "scaled": (scaled(lambda i: 0.5 + i / 10), by_hand_scaled),
    "clipped": (clipped(1.5), by_hand_clipped),
    "by sample": (clipped(0.8, of="sample"), by_hand_clipped_by_sample),
    "clamped": (clamped(0.6), by_hand_clamped),
    "two of them": (lambda i, g: clipped(1.5)(i, scaled(lambda i: 0.5 + i / 10)(i, g)),
                    lambda i, g: by_hand_clipped(i, by_hand_scaled(i, g))),
}  # fmt: skip


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("pair", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_transform_is_applied_at_every_node_of_the_way_back(pair, plan):
    transform, by_hand = pair
    torch.manual_seed(0)
    net = Net(3, torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    seen = {}

    def watched(i, g):
        seen[i] = transform(i, g)
        return seen[i]

    y = CheckpointedChain(net, M, plan=plan, grad_transform=watched)(x)
    by_x, *grads = torch.autograd.grad(y.sum(), [x, net.w, net.b])

    nodes, sums = swept(net, x, by_hand, [net.w, net.b])
    assert sorted(seen) == list(range(M))
    assert not torch.equal(by_x, torch.autograd.grad(plain(net, M, x).sum(), x)[0])
    for i in range(M):
        torch.testing.assert_close(seen[i], nodes[i], rtol=1e-12, atol=1e-14)
    for g, e in zip([by_x, *grads], [nodes[0], *sums], strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.1])
def test_a_discount_of_a_linear_chain_is_the_power_that_it_should_be(gamma):
    w = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    y = CheckpointedChain(lambda x, i: w * x, M, grad_transform=scaled(gamma))(x)
    by_x, by_w = torch.autograd.grad(y, [x, w])

    assert by_x.item() == pytest.approx((gamma * 1.2) ** M, rel=1e-14)
    # Step j sees x w^j, and what comes back to it has passed M-1-j nodes.
    expected = sum(0.7 * 1.2**j * (gamma * 1.2) ** (M - 1 - j) for j in range(M))
    assert by_w.item() == pytest.approx(expected, rel=1e-14)


def test_a_factor_of_zero_at_a_node_is_a_cut_there():
    net, x = Noisy(3, torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def gradients(**options):
        torch.manual_seed(0)
        y = CheckpointedChain(net, M, **options)(x)
        return torch.autograd.grad(y.sum(), [net.w, net.b])

    at_3 = gradients(grad_transform=scaled(lambda i: 0.0 if i == 3 else 1.0))
    assert all(map(torch.equal, at_3, gradients(grad_steps=M - 3)))


@pytest.mark.parametrize("of", ["state", "sample"])
def test_a_cotangent_that_is_short_enough_stays_the_same_to_the_bit(of):
    net, x = Net(3, torch.float64), torch.randn(4, 3, dtype=torch.float64).requires_grad_()

    def gradients(run):
        return torch.autograd.grad(run(x).sum(), [x, net.w, net.b])

    expected = gradients(lambda x: plain(net, M, x))
    chain = CheckpointedChain(net, M, grad_transform=clipped(1e6, of=of))
    assert all(map(torch.equal, gradients(chain), expected))


def test_a_clipped_cotangent_keeps_its_direction_and_has_the_norm():
    g = torch.randn(4, 3, dtype=torch.float64)

    short = clipped(0.5)(0, g)

    assert short.norm().item() == pytest.approx(0.5, rel=1e-14)
    torch.testing.assert_close(short / 0.5, g / g.norm(), rtol=1e-13, atol=0)


def test_a_clamped_cotangent_is_bounded_on_both_sides_and_kept_between():
    clamped_g = clamped(0.6)(0, torch.tensor([-2.0, -0.5, 0.5, 2.0]))

    assert torch.equal(clamped_g, torch.tensor([-0.6, -0.5, 0.5, 0.6]))


def test_the_norm_is_over_all_leaves_that_have_a_cotangent():
    g = {"a": torch.tensor([3.0, 0.0]), "b": [None, torch.tensor([[4.0], [12.0]])], "c": None}

    whole = clipped(6.5)(0, g)
    each = clipped(1.0, of="sample")(0, g)

    assert whole["b"][0] is None
    assert whole["c"] is None
    assert whole["a"].tolist() == [1.5, 0.0]  # 13 is the norm
    assert whole["b"][1].tolist() == [[2.0], [6.0]]
    torch.testing.assert_close(each["a"], torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(each["b"][1], torch.tensor([[0.8], [1.0]]))


@pytest.mark.parametrize("transform", [scaled(0.5), clipped(1.5), clamped(0.4)])
def test_a_state_with_leaves_without_a_cotangent_is_transformed_in_its_other_leaves(transform):
    w = torch.tensor([0.8, 1.1], dtype=torch.float64, requires_grad=True)
    seen = []

    def step(state, i):
        x, count, constant = state["x"], state["count"], state["constant"]
        return {"x": torch.sin(w * x + constant), "count": count + 1, "constant": constant}

    def watched(i, g):
        changed = transform(i, g)
        seen.append((g, changed))
        return changed

    x = {"x": torch.ones(2, dtype=torch.float64).requires_grad_(), "count": 0,
         "constant": torch.ones(2, dtype=torch.int64)}  # fmt: skip
    CheckpointedChain(step, M, grad_transform=watched)(x)["x"].sum().backward()

    assert len(seen) == M
    for before, after in seen:
        assert before["count"] is after["count"] is after["constant"] is None
        assert torch.equal(after["x"], transform(0, before["x"]))


def test_slices_of_a_batch_are_clipped_as_the_whole():
    net, x = Net(3, torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def gradients(of, **options):
        chain = CheckpointedChain(net, M, grad_transform=clipped(0.7, of=of), **options)
        return torch.autograd.grad(chain(x).square().sum(), [net.w, net.b])

    for of in ("state", "sample"):
        for g, e in zip(gradients(of, micro_batch=2), gradients(of), strict=True):
            torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-13)  # sums go slice by slice


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-2),
                        (torch.float16, 2e-3), (torch.complex64, 1e-6)]
)  # fmt: skip
@pytest.mark.parametrize("of", ["state", "sample"])
def test_norms_of_every_dtype_neither_overflow_nor_change_it(dtype, rtol, of):
    g = torch.full((2, 8), 30_000, dtype=dtype)

    short = clipped(2.0, of=of)(0, g)

    norm = 2 / math.sqrt(16 if of == "state" else 8)  # of an entry; rtol is one rounding
    assert short.dtype == dtype
    torch.testing.assert_close(
        short.abs().double(), torch.full((2, 8), norm, dtype=torch.float64), rtol=rtol, atol=0
    )


@pytest.mark.parametrize("of", ["state", "sample"])
def test_zeros_stay_zeros_and_what_is_not_finite_stays_so(of):
    assert not clipped(1.0, of=of)(0, torch.zeros(2, 3)).any()
    for value in (math.inf, math.nan):
        g = torch.ones(2, 3)
        g[0, 1] = value
        assert not clipped(1.0, of=of)(0, g)[0, 1].isfinite()


def test_the_norm_of_a_sample_does_not_depend_on_other_samples():
    g = torch.tensor([[30.0, 40.0], [0.3, 0.4]])

    short = clipped(1.0, of="sample")(0, g)

    torch.testing.assert_close(short, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))


def test_a_scaled_loss_with_a_scaled_norm_gives_scaled_gradients():
    net, x = Net(3, torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def gradients(scale):
        chain = CheckpointedChain(net, M, grad_transform=clipped(0.7 * scale))
        return torch.autograd.grad(chain(x).sum() * scale, [net.w, net.b])

    for g, e in zip(gradients(1024.0), gradients(1.0), strict=True):
        assert torch.equal(g, 1024 * e)  # a power of two rounds nothing


@pytest.mark.parametrize("make", [clipped, clamped])
@pytest.mark.parametrize("bad", [0, -1.0, math.nan])
def test_a_largest_norm_or_value_that_is_not_positive_is_refused(make, bad):
    with pytest.raises(ValueError, match=r"`max_(norm|value)` must be above 0"):
        make(bad)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_factor_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="`factor`"):
        scaled(bad)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match=r"'state', 'sample'.*'batch'"):
        clipped(1.0, of="batch")


@pytest.mark.parametrize("shapes", [[(), (3,)], [(2, 3), (3, 2)]])
def test_leaves_without_a_batch_in_common_have_no_norms_of_samples(shapes):
    with pytest.raises(
        ValueError, match=r'needs leaves whose first dimension is the batch.*"state"'
    ):
        clipped(1.0, of="sample")(0, [torch.ones(shape) for shape in shapes])


def test_complex_numbers_are_not_clamped():
    with pytest.raises(ValueError, match="Take `clipped`"):
        clamped(1.0)(0, torch.ones(2, dtype=torch.complex64))
