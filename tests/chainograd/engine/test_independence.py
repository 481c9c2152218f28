"""If slices of a batch differ from the whole batch, the chain refuses."""

import pytest
import torch

from chainograd import ChainError, CheckpointedChain


def test_samples_that_see_each_other_are_refused_although_the_step_draws_noise():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.1))

    with pytest.raises(ChainError, match="samples see each other"):
        CheckpointedChain(lambda x, i: net(x), 3, micro_batch=2)(torch.randn(8, 4))


def test_noise_alone_is_not_refused():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))

    CheckpointedChain(lambda x, i: net(x) + torch.randn_like(x), 3, micro_batch=2)(
        torch.randn(8, 4)
    ).sum().backward()


def test_slices_are_compared_again_once_the_network_is_in_training_mode():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).eval()
    chain = CheckpointedChain(lambda x, i: net(x), 3, micro_batch=2)
    chain(torch.randn(8, 4))
    net.train()

    with pytest.raises(ChainError, match="samples see each other"):
        chain(torch.randn(8, 4))


@pytest.mark.parametrize("late", ["mean", "table"])
def test_a_step_that_mixes_samples_later_in_the_chain_is_refused_by_its_index(late):
    w = torch.ones(4, requires_grad=True)

    def step(x, i, table):
        mixed = x.mean(0) if late == "mean" else table[:4].sum()
        return torch.sin(x * w) + (mixed if i == 2 else 0)

    with pytest.raises(ChainError, match="In step 2, two slices"):
        CheckpointedChain(step, 3, micro_batch=4)(torch.randn(8, 4), torch.linspace(0, 1, 8))
