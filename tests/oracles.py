"""The plain loop as the oracle of a sampler: a chain around the sampler equals it bit for bit."""

import torch

from chainograd import CheckpointedChain, binomial, keep_last
from tests.problems import plain

PLANS = {
    "nodes": lambda M: "nodes",
    "binomial": lambda M: binomial(M, slots=2),
    "keep_last": lambda M: keep_last(M, 2),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


class Network(torch.nn.Module):
    """Looks at the state, the time and a condition; drops out from the global stream."""

    def __init__(self, dtype, dim=5):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(dim, dim, dtype=dtype) / dim**0.5)
        self.b = torch.nn.Parameter(torch.randn(dim, dtype=dtype))

    def forward(self, x, t, *, c):
        """Return something of the shape and dtype of the state, its weight used twice."""
        t = torch.log1p(t.to(x.dtype)).view(-1, 1)
        h = torch.nn.functional.dropout(torch.tanh(x @ self.w + t * self.b + c), 0.2)
        return torch.tanh(h @ self.w.T + 0.3 * x)


def assert_a_chain_is_the_plain_loop(make, plan, dtype, *, start=lambda x: x, end=lambda x: x):
    """See that loss and gradients of a chain equal those of the plain loop, bit for bit.

    Args:
        make: ``make(network) -> step``.
        plan: A name of `PLANS`.
        dtype: Of state, parameters and condition.
        start: Makes the first state of x_T.
        end: Takes the result out of the last state.
    """
    torch.manual_seed(0)
    network = Network(dtype)
    x_T = torch.randn(3, 5, dtype=dtype, requires_grad=True)
    c = torch.randn(5, dtype=dtype, requires_grad=True)
    v = torch.randn(3, 5, dtype=dtype)
    step = make(network)
    M = step.num_steps
    wanted = (x_T, c, *network.parameters())

    def loss_and_gradients(run):
        torch.manual_seed(1)
        loss = (end(run(start(x_T))) * v).sum()
        return loss, *torch.autograd.grad(loss, wanted)

    expected = loss_and_gradients(lambda state: plain(step, M, state, c=c))
    chain = CheckpointedChain(step, M, plan=PLANS[plan](M), frozen="off")
    got = loss_and_gradients(lambda state: chain(state, c=c))

    assert all(map(torch.equal, got, expected))
    assert all(g.abs().max() > 0 for g in expected)
