"""The preflight names tensors that a step computes and keeps for later steps."""

import torch
from torch import nn

from chainograd import CheckpointedChain


def test_features_that_a_hook_keeps_are_no_finding():
    _, step = features_kept()

    found = CheckpointedChain(step, 4).check(torch.ones(2, 3, dtype=torch.float64))

    assert not any("kept a tensor" in finding.text for finding in found)
    assert not any(finding.kind == "not exact" for finding in found)


def features_kept():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    kept = {}
    net[0].register_forward_hook(lambda module, given, out: kept.update(h=out))
    net.kept = kept
    return net, lambda x, i: x + net(x)


def test_a_tensor_that_a_step_keeps_is_found_by_the_preflight():
    A = torch.ones(3, requires_grad=True)

    class Merged:
        m = None

        def __call__(self, x, i):
            if self.m is None:
                self.m = A.exp()
            return torch.tanh(x * self.m)

    found = CheckpointedChain(Merged(), 4).check(torch.ones(3, requires_grad=True))

    assert any("kept a tensor that it computed" in finding.text for finding in found)
