"""Velocities of libraries whose time runs from noise to data, the other way than here."""

import pytest
import torch

from chainograd import CheckpointedChain
from chainograd.adapters.velocity import from_data_at_one
from chainograd.samplers import FlowEuler, FlowHeun, flow_times
from tests.problems import plain

M = 4  # a power of two, so that 1 - i/M is exact and results can be compared to the bit
X_T = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Velocity(torch.nn.Module):
    """Of the other libraries: s is 0 at noise and 1 at data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w = torch.nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def forward(self, x, s, c=0.0):
        return torch.tanh(x @ self.w + c) * (1 + s[:, None])


def their_euler(u, x, **kwargs):
    for i in range(M):
        x = x + u(x, torch.full((len(x),), i / M, dtype=x.dtype), **kwargs) / M
    return x


def their_heun(u, x, **kwargs):
    """Heun's method, whose last step is Euler's as in `FlowHeun`."""
    for i in range(M):
        s, following = (torch.full((len(x),), j / M, dtype=x.dtype) for j in (i, i + 1))
        slope = u(x, s, **kwargs)
        if i + 1 < M:
            slope = (slope + u(x + slope / M, following, **kwargs)) / 2
        x = x + slope / M
    return x


@pytest.mark.parametrize(("sampler", "theirs"), [(FlowEuler, their_euler), (FlowHeun, their_heun)])
def test_the_chain_and_its_gradients_are_those_of_the_library_s_own_loop(sampler, theirs):
    u = Velocity()
    chain = CheckpointedChain(sampler(from_data_at_one(u), flow_times(M)), M)

    def sample_and_gradients(run):
        x, c = X_T.clone().requires_grad_(), torch.ones(3, dtype=X_T.dtype, requires_grad=True)
        x_0 = run(x, c)
        return x_0, *torch.autograd.grad(x_0.square().sum(), [x, c, u.w])

    ours = sample_and_gradients(lambda x, c: chain(x, c=c))

    expected = sample_and_gradients(lambda x, c: theirs(u, x, c=c))
    # Not to the bit: (s - t) times a negated velocity is divided by M in another order.
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_a_straight_path_ends_at_its_data_point():
    point = torch.tensor([7.0, -1.0, 0.5], dtype=torch.float64)
    straight = lambda x, s: (point - x) / (1 - s[:, None])  # noqa: E731

    step = FlowEuler(from_data_at_one(straight), flow_times(6, shift=3.0))

    torch.testing.assert_close(plain(step, 6, X_T), point.expand(5, 3), rtol=1e-13, atol=1e-13)


def test_a_network_that_takes_its_time_first_gives_the_same():
    u = Velocity()
    t = torch.rand(5, dtype=torch.float64)

    turned = from_data_at_one(lambda s, x, *args: u(x, s, *args), order="t, x")

    assert torch.equal(turned(X_T, t, 0.5), from_data_at_one(u)(X_T, t, 0.5))


def test_a_network_that_counts_to_999_is_asked_so():
    seen = []
    v = from_data_at_one(lambda x, s: seen.append(s.tolist()) or x, scale=999)

    v(X_T, torch.tensor([1.0, 0.0]))

    assert seen == [[0.0, 999.0]]


def test_an_unknown_order_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"`order` must be one of .*'tx'.*lambda x, t"):
        from_data_at_one(Velocity(), order="tx")
