"""What a step changes in its own objects and arguments: taken back after extra runs, or refused."""

import pytest
import torch

from chainograd import ChainError, CheckpointedChain


@pytest.mark.parametrize("plan", ["nodes", "graph"])
def test_a_step_that_changes_a_container_among_its_arguments_is_refused(plan):
    def step(x, i, options):
        options["n"] += 1
        return x * options["n"]

    with pytest.raises(ChainError, match="changed a list or dict"):
        CheckpointedChain(step, 3, plan=plan)(torch.ones(2, requires_grad=True), {"n": 1})


def test_containers_that_steps_only_read_are_accepted():
    w = torch.ones(2, requires_grad=True)

    def step(x, i, options):
        return x * options["w"][0] + len(options["w"])

    x = CheckpointedChain(step, 3)(torch.ones(2), {"w": [w]})

    assert torch.autograd.grad(x.sum(), w)[0].tolist() == [6.0, 6.0]
