"""EDM's networks as denoisers, against EDM's own loop."""

import pytest
import torch

from chainograd import CheckpointedChain
from chainograd.adapters.edm import edm_denoiser
from chainograd.samplers import EDMHeun, karras_sigmas
from tests.problems import plain

IMAGES = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Preconditioned(torch.nn.Module):
    """EDM's denoiser around a network F, with its conventions of dtype and shape.

    D = c_skip x + c_out F(c_in x, c_noise), in float32 whatever comes in.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.F = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, sigma, class_labels=None):
        x, sigma = x.to(torch.float32), sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        spread = (sigma**2 + 0.25).sqrt()
        shift = 0 if class_labels is None else class_labels.float().sum(1).view(-1, 1, 1, 1)
        F = torch.tanh(self.F(x / spread) + sigma.log() / 4 + shift)
        return 0.25 / spread**2 * x + sigma / 2 / spread * F


def edm_s_own_loop(net, x, sigmas, labels):
    """EDM's Algorithm 1 as its code runs it: states in float64, the network in float32."""
    sigmas = torch.tensor(sigmas, dtype=torch.float64)
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):  # noqa: RUF007
        d = (x - net(x, sigma, labels).to(torch.float64)) / sigma
        ahead = x + (following - sigma) * d
        if following > 0:
            d_ahead = (ahead - net(ahead, following, labels).to(torch.float64)) / following
            ahead = x + (following - sigma) * (d + d_ahead) / 2
        x = ahead
    return x


@pytest.mark.parametrize("labels", [None, torch.eye(2)], ids=["no labels", "labels"])
def test_an_edm_network_samples_as_in_edm_s_own_loop(labels):
    net, sigmas = Preconditioned(), karras_sigmas(8)
    step = EDMHeun(edm_denoiser(net), sigmas)
    args = () if labels is None else (labels,)

    ours = CheckpointedChain(step, 8)(80 * IMAGES, *args)

    # float64 states: what is left is the order of a product of three factors.
    expected = edm_s_own_loop(net, 80 * IMAGES, sigmas, labels)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    assert ours.dtype == torch.float64


def test_labels_given_beforehand_are_those_given_to_the_chain_unless_others_are():
    net, labels = Preconditioned(), torch.eye(2)
    sigma = torch.tensor([2.0, 1.0])

    before = edm_denoiser(net, class_labels=labels)

    assert torch.equal(before(IMAGES, sigma), edm_denoiser(net)(IMAGES, sigma, labels))
    assert torch.equal(before(IMAGES, sigma, 2 * labels), net(IMAGES, sigma, 2 * labels).double())


def test_one_level_for_all_samples_is_a_level_for_each():
    D = edm_denoiser(Preconditioned())

    assert torch.equal(D(IMAGES, 2.0), D(IMAGES, torch.tensor([2.0, 2.0])))


def test_what_an_edm_network_denoises_has_the_precision_of_the_state():
    D = edm_denoiser(Preconditioned())

    assert D(IMAGES, 2.0).dtype == torch.float64
    assert D(IMAGES.float(), 2.0).dtype == torch.float32


def test_an_edm_network_gets_its_gradients_in_its_own_precision():
    net = Preconditioned()
    step = EDMHeun(edm_denoiser(net), karras_sigmas(4))

    def gradients(run):
        x = (80 * IMAGES).requires_grad_()
        return torch.autograd.grad(run(x).square().sum(), [x, *net.parameters()])

    chained, looped = gradients(CheckpointedChain(step, 4)), gradients(lambda x: plain(step, 4, x))

    assert all(map(torch.equal, chained, looped))
    assert [g.dtype for g in chained] == [torch.float64, torch.float32, torch.float32]
