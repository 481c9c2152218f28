"""Further derivatives of a trajectory."""

import pytest
import torch

from chainograd import ChainError, CheckpointedChain
from chainograd.truncation.cotangents import scaled
from tests.chainograd.trajectory.passes import (
    OPTIONS,
    M,
    Run,
    Uses,
    by_chain,
    first_and_second,
    loss_on,
    plain,
    same,
    start,
    third,
    with_every_option,
)
from tests.problems import Counted


@with_every_option
@pytest.mark.parametrize("what", [first_and_second, third], ids=lambda what: what.__name__)
def test_further_derivatives_are_those_of_the_plain_loop(what, options):
    (first, more), (expected, expected_more) = (
        what(Run(by_chain(**options))), what(Run(plain)))  # fmt: skip

    same(first, expected)
    # Here the loop adds up gradients of first and second derivatives in one place.
    torch.testing.assert_close(more, expected_more, rtol=1e-11, atol=1e-11)


def test_a_second_derivative_runs_no_step_again_more_than_twice():
    for options in OPTIONS.values():
        x, c, _ = start()
        step = Counted(Uses())
        states = CheckpointedChain(step, M, **options).trajectory(x, c)
        step.runs.clear()
        torch.autograd.grad(loss_on(states, [M]), c, create_graph=True)

        assert max(map(step.runs.count, range(M))) <= 2


def test_create_graph_with_a_transform_or_with_batched_gradients_is_refused():
    x = torch.ones(2, requires_grad=True)
    step = lambda x, i: torch.sin(x)  # noqa: E731
    states = CheckpointedChain(step, 3, grad_transform=scaled(0.5)).trajectory(x)
    with pytest.raises(ChainError, match="grad_transform"):
        torch.autograd.grad(states[3].sum(), states[1], create_graph=True)
    states = CheckpointedChain(step, 3).trajectory(x)
    with pytest.raises(ChainError, match="is_grads_batched"):
        torch.autograd.grad(
            states[3], states[1], torch.eye(2), is_grads_batched=True, create_graph=True
        )
