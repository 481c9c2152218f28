"""The judge counts what a classifier says of samples, and its classifier can learn."""

import pytest
import torch
from hdiscovery.dm.open import load_dm
from hdiscovery.dm.walk import sample
from hdiscovery.evaluation.digits import digit_classifier, judge, train_classifier
from torch import nn

from chainograd.samplers import DDIM, time_grid


class ByBrightness(nn.Module):
    """Says 3 with certainty of bright images, and 3 or 7, half each, of dark ones."""

    def forward(self, x):
        logits = torch.full((len(x), 10), -1e9)
        logits[:, 3] = 0.0
        logits[:, 7] = torch.where(x.mean((1, 2, 3)) > 0, -1e9, 0.0)
        return logits


def test_confidence_and_digits_are_those_of_the_classifier():
    dm = load_dm("MNIST32-small")
    bright, dark = torch.full((2, 1, 32, 32), 0.9), torch.full((2, 1, 32, 32), -0.9)

    verdict, drawn = judge(
        dm, ByBrightness(), torch.cat([bright, dark]), torch.tensor([3, 7, 3, 7]),
        samples=6, num_steps=2,
    )  # fmt: skip

    assert verdict.classifier_accuracy == 0.5  # 3, 3, 3, 3: a tie goes to the smaller digit
    shining = (drawn.clamp(-1, 1).mean((1, 2, 3)) > 0).sum().item()
    assert verdict.mean_confidence == pytest.approx((shining + (6 - shining) / 2) / 6)
    assert verdict.digits == [0, 0, 0, 6, 0, 0, 0, 0, 0, 0]
    assert (verdict.samples, verdict.num_steps) == (6, 2)


def test_the_classifier_learns_what_can_be_learnt():
    torch.manual_seed(0)
    labels = torch.arange(2000) % 10
    patterns = torch.randn(10, 1, 16, 16)
    images = patterns[labels] + 0.5 * torch.randn(2000, 1, 16, 16)
    net = digit_classifier(16)

    losses = list(train_classifier(net, images, labels, epochs=2, batch_size=50))

    assert len(losses) == 80
    assert losses[-1] < 0.1 < losses[0]
    with torch.no_grad():
        assert (net.eval()(images).argmax(1) == labels).all()


def test_samples_are_those_of_the_ddim_loop_and_depend_on_the_seed_alone():
    dm = load_dm("MNIST32-small")
    x = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(4))
    step = DDIM(dm.unet, dm.schedule, time_grid(3))
    with torch.no_grad():
        for i in range(3):
            x = step(x, i)

    torch.manual_seed(1)
    assert torch.equal(sample(dm.unet, dm.schedule, 3, num_steps=3, seed=4), x)
