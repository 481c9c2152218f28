"""The discriminator: the UNet's encoder with ADM's names, and an equilibrium to begin in."""

import pytest
import torch
import torch.nn.functional as F
from hdiscovery.dm.adm_config import TABLE_3, UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.networks.discriminator import Discriminator, build_discriminator

from chainograd.samplers import NoiseSchedule

TINY = UNetConfig(
    image_size=8, in_channels=1, num_channels=32, channel_mult=(1, 2), num_res_blocks=1
)


def images(n=3):
    return torch.randn(n, 1, 8, 8)


def test_a_new_discriminator_says_exactly_one_half():
    torch.manual_seed(0)

    logits = Discriminator(TINY)(images())

    assert torch.equal(logits, torch.zeros(3))


def test_identical_pairs_leave_a_new_discriminator_where_it_is():
    torch.manual_seed(0)
    D, x = Discriminator(TINY), images()
    real, fake = D(x), D(x.clone())

    loss = F.binary_cross_entropy_with_logits(real, torch.ones(3))
    loss = loss + F.binary_cross_entropy_with_logits(fake, torch.zeros(3))
    loss.backward()

    assert loss.item() == pytest.approx(2 * torch.tensor(2.0).log().item())
    assert all(p.grad is not None and not p.grad.any() for p in D.parameters())


def test_pairs_that_differ_teach_its_head_first():
    torch.manual_seed(0)
    D = Discriminator(TINY)

    (D(images()).mean() - D(images()).mean()).backward()

    moved = [name for name, p in D.named_parameters() if p.grad is not None and p.grad.any()]
    assert moved == ["out.3.weight"]


def test_every_parameter_that_can_learn_does_once_no_layer_is_zero():
    torch.manual_seed(0)
    D = Discriminator(TINY)
    for p in D.parameters():
        torch.nn.init.normal_(p, std=0.1)

    D(images()).square().sum().backward()

    assert [name for name, p in D.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_is_the_encoder_of_the_network_at_time_zero():
    torch.manual_seed(0)
    unet, D = ADMUNet(TINY).double(), Discriminator(TINY).double()
    for p in (*unet.parameters(), *D.parameters()):
        torch.nn.init.normal_(p, std=0.1)
    shared = {k: v for k, v in unet.state_dict().items() if k.split(".")[0] not in _DECODER}
    found = D.load_state_dict(shared, strict=False)
    x = images().double()

    h = unet.middle(unet.encode(x, torch.zeros(3, dtype=torch.int64)))

    assert found.unexpected_keys == []
    assert found.missing_keys == ["out.0.weight", "out.0.bias", "out.3.weight", "out.3.bias"]
    torch.testing.assert_close(D(x), D.out(h).squeeze(1), rtol=1e-10, atol=1e-10)


_DECODER = ("output_blocks", "out")


@pytest.mark.parametrize("row", list(TABLE_3))
def test_its_head_is_adms_adaptive_pool(row):
    with torch.device("meta"):
        D = Discriminator(TABLE_3[row])

    C = TABLE_3[row].h_shape[0]
    assert D.out[3].weight.shape == (1, C, 1, 1)
    assert isinstance(D.out[2], torch.nn.AdaptiveAvgPool2d)


def test_that_of_a_model_has_the_models_architecture_and_weights_of_its_own():
    unet = ADMUNet(TINY)

    D = build_discriminator(DiffusionModel(unet, NoiseSchedule.linear(), "tiny"))

    assert isinstance(D, Discriminator)
    assert D.config == TINY
    assert not torch.equal(D.time_embed[0].weight, unet.time_embed[0].weight)
