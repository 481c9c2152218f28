"""Noise of torch's generators: drawn again in a rerun, and no stream is moved by it."""

import pytest
import torch

from chainograd import CheckpointedChain
from tests.problems import plain


@pytest.mark.parametrize("named", [True, False])
def test_a_recomputed_step_draws_the_noise_of_the_first_run_and_leaves_no_trace(named):
    w = torch.tensor(0.8, requires_grad=True)
    generator = torch.Generator() if named else torch.default_generator

    def step(x, i):
        return torch.dropout(torch.sin(w * x) * torch.randn(5, generator=generator), 0.3, True)

    def run(loop):
        generator.manual_seed(3)
        torch.default_generator.manual_seed(4)
        y = loop()
        middle = generator.get_state()
        g = torch.autograd.grad(y.sum(), w)[0]
        return y, g, middle, generator.get_state(), torch.get_rng_state()

    expected = run(lambda: plain(step, 6, torch.ones(5)))
    got = run(
        lambda: CheckpointedChain(step, 6, generators=[generator] if named else [])(torch.ones(5))
    )
    assert all(map(torch.equal, got, expected))
