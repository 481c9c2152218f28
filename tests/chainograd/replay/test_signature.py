"""A rerun with the same result and another graph is refused."""

import pytest
import torch

from chainograd import CheckpointedChain, ReplayError, binomial
from tests.problems import M, leaf


@pytest.mark.parametrize("plan", ["nodes", binomial(M, slots=1)], ids=str)
def test_other_noise_that_changes_gradients_only_is_refused(plan):
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
