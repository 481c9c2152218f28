"""A chain whose result has no gradient, though it uses what needs one, is refused by its line."""

import pytest
import torch
from torch import nn

from chainograd import ChainError, CheckpointedChain
from tests.problems import M, every_plan, leaf


@every_plan
def test_a_chain_that_cuts_every_gradient_off_is_refused(plan):
    w = leaf(3)
    chain = CheckpointedChain(lambda x, i: torch.sin(w.detach() * x.detach()), M, plan=plan)

    with pytest.raises(ChainError, match="Step 0 cuts every gradient off"):
        chain(torch.ones(3, requires_grad=True))


def test_a_sampler_that_does_not_use_a_parameter_it_reaches_is_not_refused():
    w = leaf(3)
    frozen = torch.randn(3)
    chain = CheckpointedChain(lambda x, i: torch.sin(frozen * x), M, params=[w])

    assert not chain(torch.ones(3)).requires_grad


def test_a_step_that_goes_on_in_numpy_cuts_its_gradient_off():
    net = nn.Linear(4, 4)
    chain = CheckpointedChain(lambda x, i: torch.tensor(net(x).detach().numpy()), 3)

    with pytest.raises(ChainError, match=r"Step 0 cuts every gradient off \(.*test_cut_off.py"):
        chain(torch.randn(2, 4))
